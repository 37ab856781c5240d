"""Robot policies: what a camera sees, what the joints say, what is to be done, and the actions themselves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens
from ._parts import ImageEncoder


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half_dim = self.dim // 2
        emb = torch.exp(torch.arange(half_dim) * -(math.log(10000) / (half_dim - 1)))
        emb = x[:, None] * emb[None, :]
        return torch.cat((emb.sin(), emb.cos()), dim=-1)


class Conv1dBlock(nn.Sequential):
    def __init__(self, inp_channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv1d(inp_channels, out_channels, 3, padding=1), nn.GroupNorm(2, out_channels), nn.Mish())


class ConditionalResidualBlock1D(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, cond_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Conv1dBlock(in_channels, out_channels), Conv1dBlock(out_channels, out_channels)])
        self.out_channels = out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * out_channels), nn.Unflatten(-1, (-1, 1)))
        self.residual_conv = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        out = self.blocks[0](x)
        embed = self.cond_encoder(cond)
        embed = embed.reshape(embed.shape[0], 2, self.out_channels, 1)
        scale, bias = embed[:, 0, ...], embed[:, 1, ...]
        out = scale * out + bias
        out = self.blocks[1](out)
        return out + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    def __init__(self, input_dim: int, global_cond_dim: int, dsed: int = 6) -> None:
        super().__init__()
        self.diffusion_step_encoder = nn.Sequential(SinusoidalPosEmb(dsed), nn.Linear(dsed, 8), nn.Mish())
        cond_dim = 8 + global_cond_dim
        self.down = ConditionalResidualBlock1D(input_dim, 8, cond_dim)
        self.downsample, self.upsample = nn.Conv1d(8, 8, 3, 2, 1), nn.ConvTranspose1d(10, 8, 4, 2, 1)
        self.mid = ConditionalResidualBlock1D(8, 10, cond_dim)
        self.up = ConditionalResidualBlock1D(16, 8, cond_dim)
        self.final_conv = nn.Sequential(Conv1dBlock(8, 8), nn.Conv1d(8, input_dim, 1))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, global_cond: torch.Tensor) -> torch.Tensor:
        sample = torch.moveaxis(sample, -1, -2)
        global_feature = self.diffusion_step_encoder(timestep)
        global_feature = torch.cat([global_feature, global_cond], dim=-1)
        x, h = self.down(sample, global_feature), []
        h.append(x)
        x = self.mid(self.downsample(x), global_feature)
        x = torch.cat((self.upsample(x), h.pop()), dim=1)
        x = self.final_conv(self.up(x, global_feature))
        return torch.moveaxis(x, -1, -2)


class DiffusionPolicy(nn.Module):
    """Denoises actions given a few observations (Chi et al., 2023): pictures and positions of the arm, side by side."""

    def __init__(self, n_obs_steps: int = 2) -> None:
        super().__init__()
        self.n_obs_steps = n_obs_steps
        self.obs_encoder = nn.ModuleDict({"image": ImageEncoder(3, 8), "agent_pos": nn.Identity()})
        self.model = ConditionalUnet1D(input_dim=2, global_cond_dim=n_obs_steps * (8 + 3))

    def forward(self, obs: dict[str, torch.Tensor], trajectory: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        batch = trajectory.shape[0]
        this_nobs = {key: x[:, : self.n_obs_steps].reshape(-1, *x.shape[2:]) for key, x in obs.items()}
        nobs_features = torch.cat([self.obs_encoder[key](x) for key, x in this_nobs.items()], dim=-1)
        return self.model(trajectory, timesteps, global_cond=nobs_features.reshape(batch, -1))


class ActionTransformer(nn.Module):
    """DETR's transformer as ACT changed it: two more tokens stand before those of the cameras."""

    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(d_model, nhead, 12, dropout=0.0)
        self.decoder = nn.TransformerDecoderLayer(d_model, nhead, 12, dropout=0.0)

    def forward(
        self,
        src: torch.Tensor,
        query_embed: torch.Tensor,
        pos_embed: torch.Tensor,
        latent_input: torch.Tensor,
        proprio_input: torch.Tensor,
        additional_pos_embed: torch.Tensor,
    ) -> torch.Tensor:
        bs = src.shape[0]
        src = src.flatten(2).permute(2, 0, 1)
        pos = torch.cat([additional_pos_embed, pos_embed], dim=0).unsqueeze(1)
        addition_input = torch.stack([latent_input, proprio_input], dim=0)
        src = torch.cat([addition_input, src], dim=0)
        memory = self.encoder(src + pos)
        queries = query_embed.unsqueeze(1).repeat(1, bs, 1)
        return self.decoder(queries, memory).transpose(0, 1)


class ACT(nn.Module):
    """Action chunking (Zhao et al., 2023): a conditional autoencoder of actions, decoded from cameras and joints."""

    def __init__(self, hidden_dim: int = 8, num_queries: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 10, 3, 2, 1))
        self.input_proj = nn.Conv2d(10, hidden_dim, 1)
        self.input_proj_robot_state = nn.Linear(5, hidden_dim)
        self.cls_embed = nn.Embedding(1, hidden_dim)
        self.encoder_action_proj, self.encoder_joint_proj = nn.Linear(3, hidden_dim), nn.Linear(5, hidden_dim)
        self.encoder = nn.TransformerEncoderLayer(hidden_dim, 2, 12, dropout=0.0)
        self.latent_proj, self.latent_out_proj = nn.Linear(hidden_dim, 2 * 3), nn.Linear(3, hidden_dim)
        self.transformer = ActionTransformer(hidden_dim, 2)
        self.query_embed, self.pos = nn.Embedding(num_queries, hidden_dim), nn.Embedding(8, hidden_dim)
        self.additional_pos_embed = nn.Embedding(2, hidden_dim)
        self.action_head, self.is_pad_head = nn.Linear(hidden_dim, 3), nn.Linear(hidden_dim, 1)

    def forward(
        self, qpos: torch.Tensor, image: torch.Tensor, actions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        bs = qpos.shape[0]
        if actions is not None:
            action_embed = self.encoder_action_proj(actions)
            qpos_embed = self.encoder_joint_proj(qpos).unsqueeze(1)
            cls_embed = self.cls_embed.weight.unsqueeze(0).repeat(bs, 1, 1)
            encoder_input = torch.cat([cls_embed, qpos_embed, action_embed], dim=1).permute(1, 0, 2)
            latent_info = self.latent_proj(self.encoder(encoder_input)[0])
            mu, logvar = latent_info[:, :3], latent_info[:, 3:]
            latent_input = self.latent_out_proj(mu + logvar.div(2).exp() * torch.randn_like(mu))
        else:
            mu = logvar = None
            latent_input = self.latent_out_proj(torch.zeros(bs, 3))
        all_cam_features = []
        for cam_id in range(image.shape[1]):
            all_cam_features.append(self.input_proj(self.backbone(image[:, cam_id])))
        hs = self.transformer(
            torch.cat(all_cam_features, dim=3),
            self.query_embed.weight,
            self.pos.weight,
            latent_input,
            self.input_proj_robot_state(qpos),
            self.additional_pos_embed.weight,
        )
        return self.action_head(hs), self.is_pad_head(hs), [mu, logvar]


class FilmConditioning(nn.Module):
    def __init__(self, num_channels: int, text_dim: int) -> None:
        super().__init__()
        self.projection_add, self.projection_mult = nn.Linear(text_dim, num_channels), nn.Linear(text_dim, num_channels)

    def forward(self, conv_filters: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        project_cond_add = self.projection_add(conditioning).unsqueeze(2).unsqueeze(3)
        project_cond_mult = self.projection_mult(conditioning).unsqueeze(2).unsqueeze(3)
        result = (1 + project_cond_mult) * conv_filters
        return result + project_cond_add


class TokenLearner(nn.Module):
    """A few tokens of each frame, pooled by maps of attention that the frame itself makes."""

    def __init__(self, channels: int, num_tokens: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(1, channels), nn.Conv2d(channels, num_tokens, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        selected = self.conv(self.norm(x)).flatten(2).softmax(dim=-1)
        return torch.einsum("bnp,bcp->bnc", selected, x.flatten(2))


class RT1(nn.Module):
    """An instruction modulates the network that looks at every frame; tokens of all frames give the next action.

    After Brohan et al. (2022); time is folded into the batch up to the transformer.
    """

    def __init__(self, channels: int = 8, frames: int = 3) -> None:
        super().__init__()
        self.text_embedding = nn.EmbeddingBag(40, 6)
        self.convs = nn.ModuleList([nn.Conv2d(3, channels, 3, 2, 1), nn.Conv2d(channels, channels, 3, 1, 1)])
        self.films = nn.ModuleList([FilmConditioning(channels, 6) for _ in range(2)])
        self.token_learner = TokenLearner(channels, 2)
        self.position = nn.Parameter(torch.randn(2 * frames, channels) * 0.1)
        self.transformer = nn.TransformerEncoderLayer(channels, 2, 12, dropout=0.0, batch_first=True)
        self.to_logits = nn.Linear(channels, 11)

    def forward(self, video: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        batch, frames = video.shape[:2]
        texts = self.text_embedding(instruction).repeat_interleave(frames, dim=0)
        x = video.flatten(0, 1)
        for conv, film in zip(self.convs, self.films, strict=True):
            x = F.relu(film(conv(x), texts))
        learned = self.token_learner(x).reshape(batch, -1, x.shape[1]) + self.position
        mask = nn.Transformer.generate_square_subsequent_mask(learned.shape[1])
        attended = self.transformer(learned, src_mask=mask, is_causal=True)
        return self.to_logits(attended.unflatten(1, (frames, -1)).mean(dim=2))


SEEN, PROPRIO = side("image", 8), side("proprio", 3)
GIVEN = "image+proprio"

CASES = (
    ZooCase(
        name="diffusion_policy",
        build=DiffusionPolicy,
        inputs=lambda batch: (
            {"image": torch.randn(batch, 2, 3, 8, 8), "agent_pos": torch.randn(batch, 2, 3)},
            torch.randn(batch, 8, 2),
            torch.arange(batch) * 7 + 1,
        ),
        modalities={"image": ["obs.image"], "proprio": ["obs.agent_pos"], "action": ["trajectory"]},
        # Rows are steps of time. What is known of the world then modulates each block of the actions' network, whose
        # stream stays the actions': its skip and its shortcuts are no news. Scale and shift are made with an axis of 1.
        points=(
            point("", "concat", flat(SEEN, PROPRIO), level="middle"),
            point("model.down", "product", flat(side("action", 8, 8), side(GIVEN, 8, 1)), calls=2, level="middle"),
            point("model.mid", "product", flat(side("action", 10, 4), side(GIVEN, 10, 1)), calls=2, level="middle"),
            point("model.up", "product", flat(side("action", 8, 8), side(GIVEN, 8, 1)), calls=2),
        ),
        rules=(
            {"id": "seen", "match": {"kind": "concat"}, "normalize": "image"},
            {"id": "film", "match": {"kind": "product"}, "normalize": "action"},
        ),
        normalize="action",
    ),
    ZooCase(
        name="act",
        build=ACT,
        inputs=lambda batch: (torch.randn(batch, 5), torch.randn(batch, 2, 3, 8, 8), torch.randn(batch, 4, 3)),
        modalities={"proprio": ["qpos"], "image": ["image"], "action": ["actions"]},
        # Joints and actions make the latent; joints stand beside it anew; and the two beside what the cameras see.
        points=(
            point("", "concat", pooled(side("proprio", 8), side("action", 8)), level="middle"),
            point("transformer", "concat", flat(side("proprio+action", 8), side("proprio", 8)), level="middle"),
            point("transformer", "concat", pooled(side("proprio+action", 8), side("image", 8))),
        ),
        rules=({"id": "all", "pairs": "all", "match": {"kind": "concat"}},),
        normalize="proprio",
    ),
    ZooCase(
        name="rt1",
        build=RT1,
        inputs=lambda batch: (torch.randn(batch, 3, 3, 8, 8), tokens(batch, 5, vocabulary=40)),
        modalities={"video": ["video"], "text": ["instruction"]},
        points=(
            point("films.0", "product", flat(side("video", 8, 4, 4), side("text", 8)), calls=2, level="middle"),
            point("films.1", "product", flat(side("video", 8, 4, 4), side("text", 8)), calls=2),
        ),
        normalize="video",
    ),
)
