"""What a study of AdDiffusion needs and a user of it never imports.

The claims H1 to H4, image metrics, the VLM judge, public benchmarks, whole-pipeline baselines, tiny pipelines, the
training of the emoji world's networks and the benchmark of speed. Nothing in ``addiffusion_env`` imports it.
"""
