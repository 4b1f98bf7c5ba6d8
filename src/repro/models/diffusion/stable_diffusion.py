"""Stable Diffusion (Rombach et al., CVPR 2022) as a noise predictor whose text can be optimised.

Networks and weights come through the optional package `diffusers`; only what the sampler, the
decoder and the text need is loaded. Conditions are text embeddings (B, L, E), L = 77 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, NonNegative, checked

GET = "pip install 'gradient-repro[diffusers]'"


class StableDiffusion(nn.Module):
    """Predicts the noise in latents (B, 4, H/8, W/8) with classifier-free guidance.

    Its weights are not the module's own: no checkpoint of a run holds them, and they are loaded
    when they are first needed, to where the latents are.

    Args:
        source: name on the Hugging Face hub, or a folder of the same layout.
        root: folder that holds ``source``; None: the hub.
        guidance: weight s of ``ε_uncond + s (ε_cond - ε_uncond)``.
        size: side of images in pixels.
        tokens: L of a condition.
        width: E.
        latents: channels.
        checkpointing: the UNet keeps no activations inside of a step either.
        half: half precision.
        info: what stands in for it; not used here.
    """

    @checked
    def __init__(
        self,
        source: str = "CompVis/stable-diffusion-v1-4",
        root: str | None = None,
        guidance: NonNegative = 7.5,
        size: Count = 512,
        tokens: Count = 77,
        width: Count = 768,
        latents: Count = 4,
        checkpointing: bool = False,
        half: bool = False,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ) -> None:
        super().__init__()
        self.name, self.source = source, source if root is None else str(Path(root) / source)
        self.guidance, self.checkpointing = guidance, checkpointing
        self.dtype = torch.float16 if half else torch.float32
        self.input_shape = (latents, size // 8, size // 8)
        self.condition_shape = (tokens, width)
        self._parts: dict[str, Any] = {}
        self._texts: dict[str, Tensor] = {}  # embeddings so far

    def embed(self, prompt: str) -> Tensor:
        """The embedding (1, L, E) of a text."""
        if prompt not in self._texts:
            with torch.no_grad():
                encoded = self._part("text_encoder")(self._tokenised(prompt))
            self._texts[prompt] = encoded.last_hidden_state
        return self._texts[prompt]

    def length(self, prompt: str) -> int:
        """Tokens of a text, those of its begin and end included."""
        tokenizer = self._part("tokenizer")
        return min(len(tokenizer(prompt).input_ids), tokenizer.model_max_length)

    def forward(self, x: Tensor, time_B: Tensor, condition_BLE: Tensor) -> Tensor:
        """The guided noise, of the shape of ``x``; a time t in (0, 1] is level 1000 t - 1."""
        unet = self._part("unet", x.device)
        blank = self.embed("").to(condition_BLE).expand_as(condition_BLE)
        both = torch.cat([blank, condition_BLE])
        level = (1000 * time_B - 1).repeat(2)
        uncond, cond = unet(x.repeat(2, 1, 1, 1), level, encoder_hidden_states=both).sample.chunk(2)
        noise: Tensor = uncond + self.guidance * (cond - uncond)
        return noise

    def decode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents, on the scale 0 to 1 but not cut to it."""
        vae = self._part("vae", x.device)
        image: Tensor = vae.decode(x / vae.config.scaling_factor).sample
        return image / 2 + 0.5

    def _tokenised(self, prompt: str) -> Tensor:
        tokenizer = self._part("tokenizer")
        encoded = tokenizer(
            prompt, padding="max_length", max_length=self.condition_shape[0], truncation=True
        )
        return torch.tensor([encoded.input_ids], device=self._part("text_encoder").device)

    def _part(self, name: str, device: torch.device | None = None) -> Any:
        """The tokenizer, text encoder, UNet or decoder."""
        if name not in self._parts:
            self._parts[name] = self._loaded(name)
        part = self._parts[name]
        if device is not None and part.device != device:
            for each in self._parts.values():
                if isinstance(each, nn.Module):
                    each.to(device)
        return part

    def _loaded(self, name: str) -> Any:
        if find_spec("diffusers") is None or find_spec("transformers") is None:
            raise UserError(f"Stable Diffusion needs diffusers and transformers: {GET}")
        diffusers, transformers = map(import_module, ("diffusers", "transformers"))

        kinds = {
            "tokenizer": transformers.CLIPTokenizer,
            "text_encoder": transformers.CLIPTextModel,
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
        }
        knobs = {} if name == "tokenizer" else {"torch_dtype": self.dtype}
        try:
            part: Any = kinds[name].from_pretrained(self.source, subfolder=name, **knobs)
        except (OSError, ValueError) as error:
            raise UserError(
                f"Stable Diffusion's {name} is missing: nothing at {self.source}. Fetch it with "
                f"'hf download {self.name}', or name the folder that holds it with data.root=…."
            ) from error
        if name != "tokenizer":
            part.eval().requires_grad_(False)
            if self.checkpointing and name == "unet":
                part.enable_gradient_checkpointing()
                part.train()  # diffusers checkpoints in training mode alone; there is no dropout
        return part


class SmallDiffusion(nn.Module):
    """Stands in for `StableDiffusion` in rehearsals: random convolutions that hear the condition.

    Args:
        size: see `StableDiffusion`; likewise the following.
        tokens: L.
        width: E.
        latents: channels.
        **_facts: where the weights would be.
    """

    def __init__(
        self, size: int = 512, tokens: int = 77, width: int = 768, latents: int = 4, **_facts: Any
    ) -> None:
        super().__init__()
        self.input_shape = (latents, size // 8, size // 8)
        self.condition_shape = (tokens, width)
        self.noise = nn.Conv2d(latents, latents, 3, padding=1)
        self.text = nn.Linear(width, latents)
        self.image = nn.ConvTranspose2d(latents, 3, 8, stride=8)

    def embed(self, prompt: str) -> Tensor:
        """Sinusoids of a text's characters, (1, L, E)."""
        codes = [ord(letter) for letter in prompt[: self.condition_shape[0]]]
        codes += [0] * (self.condition_shape[0] - len(codes))
        device = self.text.weight.device
        angles = torch.arange(1, self.condition_shape[1] + 1, device=device) / 100
        return torch.sin(torch.tensor(codes, device=device)[:, None] * angles)[None]

    def length(self, prompt: str) -> int:
        """As many tokens as words, and two."""
        return min(len(prompt.split()) + 2, self.condition_shape[0])

    def forward(self, x: Tensor, _time_B: Tensor, condition_BLE: Tensor) -> Tensor:
        """Some noise, of the shape of ``x``."""
        noise: Tensor = x / 2 + self.noise(x) + self.text(condition_BLE.mean(1))[:, :, None, None]
        return noise

    def decode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents."""
        image: Tensor = self.image(x)
        return image
