#!/usr/bin/env bash
# hydra-core 1.4.0rc3: one .yml file anywhere below the configuration folder (another tool's, never named in a defaults
# list) makes `--help` a traceback, while the program itself and `--cfg job` run. Under 1.3.8 the file is left out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p conf/other_tool
echo "seed: 0" > conf/config.yaml
echo "CartPole-v1: {n_steps: 8}" > conf/other_tool/ppo.yml
cat > app.py <<'PY'
import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    print("runs with seed", config.seed)


main()
PY
status=0
for version in 1.3.8 1.4.0rc3; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/python" -m pip install --quiet "hydra-core==$version" 2>/dev/null
    python="venv-$version/bin/python"
    runs=$("$python" app.py hydra.run.dir=. hydra.output_subdir=null 2>/dev/null)
    if "$python" app.py --help > help.txt 2>&1; then help=works; else help=fails; fi
    echo "hydra-core $version: '$runs'; --help $help ($(grep -o "Unsupported config file extension '.yml'" help.txt | head -1))"
    expected=$([ "$version" = 1.3.8 ] && echo works || echo fails)
    [ "$help" = "$expected" ] && [ "$runs" = "runs with seed 0" ] || status=1
done
exit $status
