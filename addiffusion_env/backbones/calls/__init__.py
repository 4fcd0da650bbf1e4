"""Drives a diffusers pipeline through its own ``__call__``: open calls, joined network calls, scheduler steps.

What happens in one lane-step, from the engine's ``predict`` to its ``scheduler_step``::

    pipeline_backbone   latents, level, guidance scale of each lane -> an Evaluation of its CallRequest (requests)
    evaluator           brings one OpenCall per lane to the network request for its latents and time (open_call), or
                        takes lanes whose loop body was recorded together as one Block (recording, replays)
    networks, joining   network requests of all lanes -> as few network calls as give the same results
    evaluator           each lane's AtStep: what the pipeline passed to ``scheduler.step``
    pipeline_backbone   AtStep -> clean latents (conventions)
    scheduler           AtStep, the lane's scheduler state -> next latents, next state

An open call is the pipeline's Python in a greenlet, on a copy of the pipeline whose networks and scheduler are
``stand_ins``; ``guards`` keeps torch's state and errors of the two apart. Batch axes, the meaning of the guidance
scale, whether calls can be joined, and the layout of latents (``latent_layout``) are not known per architecture: they
are ``measured`` when a pipeline is wrapped. ``loaded`` and ``arguments`` check the pipeline and what it is called with,
``text_cache`` encodes each prompt once, and ``denoiser_hooks`` and ``preview_decoder`` look into a step.
"""
