"""The whole job in PyTorch, as `balanced` does it on the demo: the same data, batches and steps, without the search for other
words and the closed-form edit, which only the program has."""
import copy
import pathlib
import tomllib

import torch

ROOT = pathlib.Path(__file__).parents[2]
FORGET, RETAIN, SAMPLING_STEPS, GUIDANCE = 64, 192, 12, 5.0
SCORE_BATCHES, KEPT = 8, 0.995
STEPS, FORGET_BATCH, RETAIN_BATCH = 100, 4, 12
MEMORY_EVERY, MEMORY_BATCHES, LEARNING_RATE = 50, 2, 6e-4


def job():
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(
        ROOT / "weights" / "demo", safety_checker=None, torch_dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    concept = tomllib.loads((ROOT / "prompts" / "star.toml").read_text())
    return lambda: erase(pipeline, concept)


def erase(pipeline, concept):
    torch.manual_seed(0)
    original = pipeline.unet
    alphas = pipeline.scheduler.alphas_cumprod

    def latents(prompts, count):
        prompts = [prompts[i % len(prompts)] for i in range(count)]
        made = [pipeline(prompts[i:i + 32], num_inference_steps=SAMPLING_STEPS, guidance_scale=GUIDANCE,
                         output_type="latent").images for i in range(0, count, 32)]
        return torch.cat(made)

    @torch.no_grad()
    def embed(prompts):
        ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt",
                                 max_length=pipeline.tokenizer.model_max_length).input_ids
        return torch.cat([pipeline.text_encoder(part)[0] for part in ids.split(64)])

    def batch(x0, texts, size):
        rows = torch.randint(0, len(x0), (size,))
        t, noise = torch.randint(0, len(alphas), (2, size)).amax(0), torch.randn(size, *x0.shape[1:])
        alpha = alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * x0[rows] + (1 - alpha).sqrt() * noise, t, noise, rows % len(texts)

    forget, retain = latents(concept["forget"], FORGET), latents(concept["retain"], RETAIN)
    texts, anchors, kept, empty = (embed(p) for p in (concept["forget"], concept["anchors"], concept["retain"], [""]))
    student = copy.deepcopy(original)
    trained = {n: p.requires_grad_("attn2" in n) for n, p in student.named_parameters()}
    trained = {n: p for n, p in trained.items() if p.requires_grad}
    parameters = list(trained.values())

    def gradients(loss):
        return torch.autograd.grad(loss, parameters)

    def denoising(x0, texts):
        noisy, t, noise, rows = batch(x0, texts, FORGET_BATCH)
        return (student(noisy, t, texts[rows]).sample - noise).square().mean()

    def sensitivity(x0, texts):
        sums = [torch.zeros_like(p) for p in parameters]
        for _ in range(SCORE_BATCHES):
            for total, gradient in zip(sums, gradients(denoising(x0, texts))):
                total += gradient.abs()
        return sums

    scores = [((f - r).clamp(min=0) * p.detach()).abs() for f, r, p in
              zip(sensitivity(forget, texts), sensitivity(retain, kept), parameters)]
    flat = torch.cat([s.flatten() for s in scores])
    threshold = flat.kthvalue(int(KEPT * len(flat))).values
    with torch.no_grad():
        for p, score in zip(parameters, scores):
            p.copy_(torch.where(score > threshold, torch.randn_like(p) * p.std(), p))

    optimizer, memory = torch.optim.Adam(parameters, lr=LEARNING_RATE), None
    for step in range(STEPS):
        if step % MEMORY_EVERY == 0:
            parts = [gradients(denoising(forget, texts)) for _ in range(MEMORY_BATCHES)]
            memory = [-sum(part) / MEMORY_BATCHES for part in zip(*parts)]
        f_noisy, f_t, _, f_rows = batch(forget, texts, FORGET_BATCH)
        r_noisy, r_t, _, r_rows = batch(retain, kept, RETAIN_BATCH)
        noisy, t = torch.cat([f_noisy, r_noisy]), torch.cat([f_t, r_t])
        shown = kept[r_rows]
        shown[:RETAIN_BATCH // 4] = empty
        with torch.no_grad():
            target = original(noisy, t, torch.cat([anchors[f_rows], shown])).sample
        prediction = student(noisy, t, torch.cat([texts[f_rows], shown])).sample
        sigma = ((1 - alphas[t]) / alphas[t]).sqrt().clamp(max=8).view(-1, 1, 1, 1) / 2
        errors = (prediction - target).square() * sigma
        step_gradients = gradients(errors[:FORGET_BATCH].mean() + errors[FORGET_BATCH:].mean())
        along = sum((m * g).sum() for m, g in zip(memory, step_gradients))
        if along < 0:
            scale = along / sum(m.square().sum() for m in memory)
            step_gradients = [g - scale * m for m, g in zip(memory, step_gradients)]
        for p, gradient in zip(parameters, step_gradients):
            p.grad = gradient
        optimizer.step()
