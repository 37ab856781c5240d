"""Speech into a language model, and pairs of image and text whose attention is projected by the layer around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, point, pooled, side, tokens
from ._parts import PatchEncoder, TokenEncoder


class QFormerLayer(nn.Module):
    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(features, 2, kdim=context, vdim=context, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.self_attention(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.cross_attention(x, context, context, need_weights=False)[0])


class SpeechFrontEnd(nn.Module):
    """Features of speech and of other sounds side by side, read window by window by a few queries."""

    def __init__(self, llm_dim: int, second_per_window: int = 3) -> None:
        super().__init__()
        self.window = second_per_window
        self.speech_encoder = nn.Sequential(nn.Conv1d(5, 8, 3, 1, 1), nn.GELU())
        self.beats = nn.Conv1d(1, 6, 8, 4, 2)
        self.ln_speech, self.ln_audio = nn.LayerNorm(8), nn.LayerNorm(6)
        self.query_tokens = nn.Parameter(torch.randn(1, 1, 10) * 0.3)
        self.qformer = QFormerLayer(10, 14)
        self.proj = nn.Linear(10, llm_dim)

    def forward(self, spectrogram: torch.Tensor, raw_wav: torch.Tensor) -> torch.Tensor:
        speech_embeds = self.ln_speech(self.speech_encoder(spectrogram).transpose(1, 2))
        audio_embeds = self.ln_audio(self.beats(raw_wav.unsqueeze(1)).transpose(1, 2))
        if audio_embeds.size(1) < speech_embeds.size(1):
            audio_embeds = F.pad(audio_embeds, (0, 0, 0, speech_embeds.size(1) - audio_embeds.size(1)))
        elif audio_embeds.size(1) > speech_embeds.size(1):
            speech_embeds = F.pad(speech_embeds, (0, 0, 0, audio_embeds.size(1) - speech_embeds.size(1)))
        speech_embeds = torch.cat((speech_embeds, audio_embeds), dim=-1)
        B, _, C = speech_embeds.shape
        kernel = (1, self.window)
        speech_embeds_tr = speech_embeds.transpose(1, 2).unsqueeze(2)
        speech_embeds_overlap = F.unfold(speech_embeds_tr, kernel_size=kernel, dilation=1, padding=0, stride=kernel)
        _, _, L = speech_embeds_overlap.shape
        speech_embeds_overlap = speech_embeds_overlap.view(B, -1, kernel[1], L)
        speech_embeds_overlap = torch.permute(speech_embeds_overlap, [0, 3, 2, 1])
        speech_embeds = speech_embeds_overlap.reshape(-1, kernel[1], C)
        query_tokens = self.query_tokens.expand(speech_embeds.shape[0], -1, -1)
        query_output = self.qformer(query_tokens, speech_embeds)
        return self.proj(query_output).view(B, -1, self.proj.out_features)


class SALMONN(nn.Module):
    """A language model that hears (Tang et al., 2024): sounds stand between the halves of a prompt, the text behind."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.front = SpeechFrontEnd(dim)
        self.embed_tokens = nn.Embedding(40, dim)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(dim, 2, 16, 0.0, batch_first=True) for _ in range(2)])
        self.lm_head = nn.Linear(dim, 40)

    def prompt_wrap(self, embeds: torch.Tensor, prompt_ids: torch.Tensor) -> torch.Tensor:
        before, after = self.embed_tokens(prompt_ids).chunk(2, dim=1)
        return torch.cat([before, embeds, after], dim=1)

    def forward(self, samples: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embeds = self.front(samples["spectrogram"], samples["raw_wav"])
        embeds = self.prompt_wrap(embeds, samples["prompt_ids"])
        bos = self.embed_tokens(torch.ones(embeds.shape[0], 1, dtype=torch.long))
        x = torch.cat([bos, embeds, self.embed_tokens(samples["text_ids"])], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return {"logits": self.lm_head(x)}


class Attend(nn.Module):
    """Softmax attention without a parameter: whoever calls it has made queries, keys and values, by heads."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        sim = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("bhij,bhjd->bhid", sim.softmax(dim=-1), v)


class FusionLayer(nn.Module):
    """A layer of ALBEF's multimodal encoder, with the projections of both attentions beside the attending module."""

    def __init__(self, features: int, context: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_q = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.to_kv = nn.Linear(context, 2 * features)
        self.out_self, self.out_cross = nn.Linear(features, features), nn.Linear(features, features)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(features) for _ in range(3))
        self.attend, self.attend_cross = Attend(), Attend()
        self.mlp = nn.Sequential(nn.Linear(features, 16), nn.GELU(), nn.Linear(16, features))

    def _by_head(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in tensors]

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        q, k, v = self._by_head(*self.to_qkv(self.norm1(text)).chunk(3, dim=-1))
        text = text + self.out_self(self.attend(q, k, v).transpose(1, 2).flatten(2))
        q, k, v = self._by_head(self.to_q(self.norm2(text)), *self.to_kv(image).chunk(2, dim=-1))
        text = text + self.out_cross(self.attend_cross(q, k, v).transpose(1, 2).flatten(2))
        return text + self.mlp(self.norm3(text))


class ALBEF(nn.Module):
    """Align before fuse (Li et al., 2021): contrast with a queue, then matching against hard negatives of the batch."""

    def __init__(self, embed_dim: int = 6, queue_size: int = 4) -> None:
        super().__init__()
        self.visual_encoder, self.text_encoder = PatchEncoder(3, 10), TokenEncoder(40, 8)
        self.vision_proj, self.text_proj = nn.Linear(10, embed_dim), nn.Linear(8, embed_dim)
        self.fusion = nn.ModuleList([FusionLayer(8, 10) for _ in range(2)])
        self.itm_head = nn.Linear(8, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("image_queue", F.normalize(torch.randn(embed_dim, queue_size), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(embed_dim, queue_size), dim=0))

    def encode_pair(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        for layer in self.fusion:
            text = layer(text, image)
        return text[:, 0, :]

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image_embeds, text_embeds = self.visual_encoder(image), self.text_encoder(text)
        image_feat = F.normalize(self.vision_proj(image_embeds[:, 0, :]), dim=-1)
        text_feat = F.normalize(self.text_proj(text_embeds[:, 0, :]), dim=-1)
        image_feat_all = torch.cat([image_feat.t(), self.image_queue.clone().detach()], dim=1)
        text_feat_all = torch.cat([text_feat.t(), self.text_queue.clone().detach()], dim=1)
        sim_i2t = image_feat @ text_feat_all / self.temp
        sim_t2i = text_feat @ image_feat_all / self.temp

        bs = image.size(0)
        with torch.no_grad():
            weights_i2t, weights_t2i = F.softmax(sim_i2t[:, :bs], dim=1), F.softmax(sim_t2i[:, :bs], dim=1)
            weights_i2t.fill_diagonal_(0).add_(1e-4)
            weights_t2i.fill_diagonal_(0).add_(1e-4)
        image_embeds_neg = torch.stack(
            [image_embeds[int(torch.multinomial(weights_t2i[b], 1).item())] for b in range(bs)], dim=0
        )
        text_embeds_neg = torch.stack(
            [text_embeds[int(torch.multinomial(weights_i2t[b], 1).item())] for b in range(bs)], dim=0
        )
        output_pos = self.encode_pair(text_embeds, image_embeds)
        text_embeds_all = torch.cat([text_embeds, text_embeds_neg], dim=0)
        image_embeds_all = torch.cat([image_embeds_neg, image_embeds], dim=0)
        output_neg = self.encode_pair(text_embeds_all, image_embeds_all)
        return self.itm_head(torch.cat([output_pos, output_neg], dim=0)), sim_i2t, sim_t2i


class PromptLayer(nn.Module):
    """A layer of X-CLIP's prompt generator that projects for the module which attends."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm, self.norm_visual = nn.LayerNorm(features), nn.LayerNorm(features)
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(features, features) for _ in range(4))
        self.core = Attend()
        self.mlp = nn.Sequential(nn.Linear(features, 16), nn.GELU(), nn.Linear(16, features))

    def forward(self, x: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        y = self.norm_visual(visual)
        q = self.q_proj(self.norm(x)).reshape(B, N, 2, C // 2).permute(0, 2, 1, 3)
        k = self.k_proj(y).reshape(B, -1, 2, C // 2).permute(0, 2, 1, 3)
        v = self.v_proj(y).reshape(B, -1, 2, C // 2).permute(0, 2, 1, 3)
        x = x + self.proj(self.core(q, k, v).permute(0, 2, 1, 3).reshape(B, N, C))
        return x + self.mlp(x)


class PromptGenerator(nn.Module):
    def __init__(self, features: int, layers: int) -> None:
        super().__init__()
        self.decoder = nn.ModuleList([PromptLayer(features) for _ in range(layers)])
        self.alpha = nn.Parameter(torch.ones(features) * 0.1)

    def forward(self, text: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        for layer in self.decoder:
            text = layer(text, visual)
        return self.alpha * text


class VideoPrompts(nn.Module):
    """X-CLIP-like recognition (Ni et al., 2022): names of classes, prompted by each clip, compared with that clip."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = PatchEncoder(3, features), TokenEncoder(40, features)
        self.mit = nn.TransformerEncoderLayer(features, 2, 12, dropout=0.0, batch_first=True)
        self.prompts_generator = PromptGenerator(features, 2)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, video: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor:
        b, t = video.shape[:2]
        patches = self.image_encoder(video.flatten(0, 1))
        frames = patches.mean(dim=1).view(b, t, -1)
        patches = patches.view(b, t, *patches.shape[1:]).mean(dim=1)
        clip = self.mit(frames).mean(dim=1)
        text = self.text_encoder(class_ids)[:, -1].unsqueeze(0).expand(b, -1, -1)
        text = text + self.prompts_generator(text, patches)
        clip, text = clip / clip.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * torch.einsum("bd,bkd->bk", clip, text)


def sounds_and_words(batch: int) -> tuple[dict[str, torch.Tensor]]:
    samples = {"spectrogram": torch.randn(batch, 5, 9), "raw_wav": torch.randn(batch, 32)}
    return ({**samples, "prompt_ids": tokens(batch, 4, 40), "text_ids": tokens(batch, 5, 40)},)


SIMILARITY = {"level": None, "selected": False, "sites_known": False}

CASES = (
    ZooCase(
        name="salmonn",
        build=SALMONN,
        inputs=sounds_and_words,
        modalities={
            "speech": ["samples.spectrogram"],
            "sound": ["samples.raw_wav"],
            "text": ["samples.prompt_ids", "samples.text_ids"],
        },
        # The queries are parameters: that they read is no meeting. What was heard is put between two halves of a
        # prompt; then the text that is to be continued follows, which no one has seen yet.
        points=(
            point("front", "concat", pooled(side("speech", 8), side("sound", 6)), level="middle"),
            point(
                "",
                "concat",
                pooled(side("text", 12), side("speech+sound", 12)),
                pooled(side("text", 12), side("speech+sound", 12)),
                level="middle",
            ),
            point(
                "",
                "concat",
                pooled(side("speech+sound+text", 12), side("text", 12)),
                selected=False,
                sites_known=False,
            ),
        ),
        rules=(
            {"id": "heard", "match": {"kind": "concat", "owner": "front"}, "normalize": "speech"},
            {"id": "told", "match": {"kind": "concat", "owner": "", "nth": 0}, "normalize": "text"},
        ),
        normalize="text",
    ),
    ZooCase(
        name="albef",
        build=ALBEF,
        inputs=lambda batch: (torch.randn(batch, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"image": ["image"], "text": ["text"]},
        # Two matrices of similarities with a queue behind; which negatives are drawn by them is no content. The layers
        # are called twice, on pairs and on negatives, in one role; RegBN takes the tokens before the projections.
        points=(
            point("", "similarity", meets=("image", "text"), **SIMILARITY),
            point("", "similarity", meets=("image", "text"), **SIMILARITY),
            point(
                "fusion.0.attend_cross",
                "attention",
                pooled(side("text", 8), side("image", 10)),
                calls=2,
                level="middle",
            ),
            point("fusion.1.attend_cross", "attention", pooled(side("text", 8), side("image", 10)), calls=2),
        ),
        rules=({"id": "fuse", "match": {"kind": "attention"}, "normalize": "text"},),
        normalize="text",
    ),
    ZooCase(
        name="video_prompts",
        build=VideoPrompts,
        inputs=lambda batch: (torch.randn(batch, 2, 3, 8, 8), tokens(3, 5, vocabulary=40)),
        modalities={"video": ["video"], "text": ["class_ids"]},
        points=(
            point(
                "prompts_generator.decoder.0.core",
                "attention",
                pooled(side("text", 8), side("video", 8)),
                calls=2,
                level="middle",
            ),
            point("prompts_generator.decoder.1.core", "attention", pooled(side("text", 8), side("video", 8)), calls=2),
            point("", "similarity", meets=("video", "text"), **SIMILARITY),
        ),
        rules=({"id": "prompt", "match": {"kind": "attention"}, "normalize": "text"},),
        normalize="text",
    ),
)
