"""Audio-visual events and speech, and texts about videos: clips, frames and captions folded into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import nn

from .._case import ZooCase, flat, point, pooled, side, tokens


class HANLayer(nn.Module):
    """One layer of a hybrid attention network: a sequence reads the other one and itself, both at once."""

    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=0.1)
        self.cm_attn = nn.MultiheadAttention(d_model, nhead, dropout=0.1)
        self.linear1, self.linear2 = nn.Linear(d_model, 12), nn.Linear(12, d_model)
        self.dropout, self.norm1, self.norm2 = nn.Dropout(0.1), nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, src_q: torch.Tensor, src_v: torch.Tensor) -> torch.Tensor:
        src_q, src_v = src_q.permute(1, 0, 2), src_v.permute(1, 0, 2)
        src1 = self.cm_attn(src_q, src_v, src_v)[0]
        src2 = self.self_attn(src_q, src_q, src_q)[0]
        src_q = src_q + self.dropout(src1) + self.dropout(src2)
        src_q = self.norm1(src_q)
        src2 = self.linear2(self.dropout(F.relu(self.linear1(src_q))))
        return self.norm2(src_q + self.dropout(src2)).permute(1, 0, 2)


class AudioVisualParsing(nn.Module):
    """Which events are heard, seen, or both, and when (Tian et al., 2020): attentive pooling over time and modality."""

    def __init__(self, d: int = 8, events: int = 5) -> None:
        super().__init__()
        self.fc_a, self.fc_v, self.fc_st = nn.Linear(6, d), nn.Linear(9, d), nn.Linear(7, d)
        self.fc_fusion = nn.Linear(2 * d, d)
        self.hat_layer = HANLayer(d, 2)
        self.fc_prob, self.fc_frame_att, self.fc_av_att = (nn.Linear(d, events) for _ in range(3))

    def forward(
        self, audio: torch.Tensor, visual: torch.Tensor, visual_st: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        x1 = self.fc_a(audio)
        vid_s = self.fc_v(visual).permute(0, 2, 1).unsqueeze(-1)
        vid_s = F.avg_pool2d(vid_s, (2, 1)).squeeze(-1).permute(0, 2, 1)
        x2 = self.fc_fusion(torch.cat((vid_s, self.fc_st(visual_st)), dim=-1))
        x1, x2 = self.hat_layer(x1, x2), self.hat_layer(x2, x1)
        x = torch.cat([x1.unsqueeze(-2), x2.unsqueeze(-2)], dim=-2)
        frame_prob = torch.sigmoid(self.fc_prob(x))
        frame_att = torch.softmax(self.fc_frame_att(x), dim=1)
        av_att = torch.softmax(self.fc_av_att(x), dim=2)
        temporal_prob = frame_att * frame_prob
        global_prob = (temporal_prob * av_att).sum(dim=2).sum(dim=1)
        a_prob, v_prob = temporal_prob[:, :, 0, :].sum(dim=1), temporal_prob[:, :, 1, :].sum(dim=1)
        return global_prob, a_prob, v_prob, frame_prob


class AVHubert(nn.Module):
    """Audio-visual speech (Shi et al., 2022): features of sound and lips side by side; in training one may drop out."""

    def __init__(self, modality_fuse: str = "concat", dim: int = 8) -> None:
        super().__init__()
        self.modality_fuse = modality_fuse
        self.feature_extractor_audio = nn.Linear(5, dim)
        self.frontend3d = nn.Conv3d(1, 4, (3, 3, 3), (1, 2, 2), (1, 1, 1))
        self.proj_video = nn.Linear(4, dim)
        width = {"concat": 2 * dim, "add": dim}[modality_fuse]
        self.layer_norm, self.post_extract_proj = nn.LayerNorm(width), nn.Linear(width, dim)
        self.encoder = nn.TransformerEncoderLayer(dim, 2, 12, dropout=0.0, batch_first=True)
        self.modality_dropout, self.audio_dropout = 0.1, 0.5

    def forward_video(self, video: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.frontend3d(video))  # [B, C, T, H, W]
        batch, channels, frames = x.shape[:3]
        x = x.transpose(1, 2).reshape(batch * frames, channels, *x.shape[3:])
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.proj_video(x).view(batch, frames, -1).transpose(1, 2)

    def forward(self, source: dict[str, torch.Tensor]) -> torch.Tensor:
        features_audio = self.feature_extractor_audio(source["audio"].transpose(1, 2)).transpose(1, 2)
        features_video = self.forward_video(source["video"])
        if self.training:
            drop, which = torch.rand(2).tolist()
            if drop < self.modality_dropout:
                if which < self.audio_dropout:
                    features_audio = 0 * features_audio
                else:
                    features_video = 0 * features_video
        if self.modality_fuse == "concat":
            features = torch.cat([features_audio, features_video], dim=1)
        else:
            features = features_audio + features_video
        features = self.layer_norm(features.transpose(1, 2))
        return self.encoder(self.post_extract_proj(features))


class CRN(nn.Module):
    """A conditional relation network's unit: all subsets of some objects, each beside a condition."""

    def __init__(self, module_dim: int, num_objects: int) -> None:
        super().__init__()
        self.scales = range(num_objects, 1, -1)
        self.k_objects_fusion = nn.ModuleList([nn.Linear(2 * module_dim, module_dim) for _ in self.scales])

    def forward(self, object_list: Sequence[torch.Tensor], cond_feat: torch.Tensor) -> list[torch.Tensor]:
        crn_feats = []
        for scale_id, scale in enumerate(self.scales):
            relations = []
            for subset in combinations(range(len(object_list)), scale):
                clips_over_scale = [object_list[obj].unsqueeze(1) for obj in subset]
                g_feat = torch.cat(clips_over_scale, dim=1).mean(1)
                if g_feat.dim() == 2:
                    h_feat = torch.cat((g_feat, cond_feat), dim=-1)
                else:
                    cond_feat_repeat = cond_feat.unsqueeze(1).repeat(1, g_feat.size(1), 1)
                    h_feat = torch.cat((g_feat, cond_feat_repeat), dim=-1)
                relations.append(F.elu(self.k_objects_fusion[scale_id](h_feat)))
            crn_feats.append(torch.stack(relations).mean(0))
        return crn_feats


class HCRN(nn.Module):
    """Hierarchical relations for video questions (Le et al., 2020): frames in clips, clips in the video."""

    def __init__(self, dim: int = 8, frames: int = 3, clips: int = 3) -> None:
        super().__init__()
        self.clip_level_motion_cond, self.clip_level_question_cond = CRN(dim, frames), CRN(dim, frames - 1)
        self.video_level_motion_cond, self.video_level_question_cond = CRN(dim, clips), CRN(dim, clips - 1)
        self.sequence_encoder = nn.LSTM(7, dim, batch_first=True)
        self.clip_level_motion_proj, self.video_level_motion_proj = nn.Linear(7, dim), nn.Linear(dim, dim)
        self.appearance_feat_proj = nn.Linear(10, dim)
        self.word_embedding, self.question_encoder = nn.Embedding(40, 6), nn.LSTM(6, dim, batch_first=True)
        self.question_embedding_proj, self.output_question_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.classifier = nn.Linear(2 * dim, 4)

    def forward(self, appearance: torch.Tensor, motion: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.question_encoder(self.word_embedding(question))
        question_embedding = state.squeeze(0)
        question_proj = self.question_embedding_proj(question_embedding)
        clip_level_crn_outputs = []
        for i in range(appearance.size(1)):
            clip_motion = self.clip_level_motion_proj(motion[:, i])
            frames = torch.unbind(self.appearance_feat_proj(appearance[:, i]), dim=1)
            by_motion = self.clip_level_motion_cond(frames, clip_motion)
            by_question = self.clip_level_question_cond(by_motion, question_proj)
            clip_level_crn_outputs.append(torch.stack(by_question, dim=1))
        _, (video_motion, _) = self.sequence_encoder(motion)
        video_motion = self.video_level_motion_proj(video_motion.squeeze(0))
        by_motion = self.video_level_motion_cond(clip_level_crn_outputs, video_motion)
        by_question = self.video_level_question_cond(by_motion, question_proj)
        visual = torch.cat(by_question, dim=1).mean(dim=1)
        return self.classifier(torch.cat([visual, self.output_question_proj(question_embedding)], 1))


def repeat_tensor_rows(raw_tensor: torch.Tensor, row_repeats: list[int]) -> torch.Tensor:
    """Each row of a tensor as often as it is needed."""
    if sum(row_repeats) == len(row_repeats):
        return raw_tensor
    indices = torch.LongTensor([i for i, r in enumerate(row_repeats) for _ in range(r)])
    return raw_tensor.index_select(0, indices)


class ClipBertEncoder(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.word_embeddings, self.text_position = nn.Embedding(40, hidden), nn.Embedding(9, hidden)
        self.row_position, self.column_position = nn.Embedding(4, hidden), nn.Embedding(4, hidden)
        self.token_type = nn.Embedding(2, hidden)
        self.layer_norm = nn.LayerNorm(hidden)
        layer = nn.TransformerEncoderLayer(hidden, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def embed_grid(self, grid: torch.Tensor) -> torch.Tensor:
        grid = grid.mean(1)  # over frames, once all of them were seen: [B, H, W, C]
        rows, columns = torch.arange(grid.size(1)), torch.arange(grid.size(2))
        grid = grid + self.row_position(rows)[None, :, None, :] + self.column_position(columns)[None, None, :, :]
        return self.layer_norm(grid.flatten(1, 2) + self.token_type.weight[1])

    def forward(self, text_input_ids: torch.Tensor, visual_inputs: torch.Tensor) -> torch.Tensor:
        places = torch.arange(text_input_ids.size(1))
        text = self.word_embeddings(text_input_ids) + self.text_position(places) + self.token_type.weight[0]
        return self.encoder(torch.cat([self.layer_norm(text), self.embed_grid(visual_inputs)], dim=1))[:, 0]


class ClipBert(nn.Module):
    """Sparsely sampled clips (Lei et al., 2021): all texts of a video, with one clip after another; scores averaged."""

    def __init__(self, hidden: int = 8, num_clips: int = 2) -> None:
        super().__init__()
        self.num_clips = num_clips
        self.cnn = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, hidden, 3, 2, 1), nn.ReLU())
        self.transformer = ClipBertEncoder(hidden)
        self.classifier = nn.Linear(hidden, 2)

    def forward_clip(self, visual_inputs: torch.Tensor, batch: dict[str, object]) -> torch.Tensor:
        bsz, frames, channels, height, width = visual_inputs.shape
        grid = self.cnn(visual_inputs.reshape(bsz * frames, channels, height, width))
        grid = grid.view(bsz, frames, *grid.shape[1:]).permute(0, 1, 3, 4, 2)
        grid = repeat_tensor_rows(grid, batch["n_examples_list"])
        return self.classifier(self.transformer(batch["text_input_ids"], grid))

    def forward(self, batch: dict[str, object]) -> dict[str, torch.Tensor]:
        clips = batch["visual_inputs"].view(len(batch["visual_inputs"]), self.num_clips, -1, 3, 8, 8)
        logits = [self.forward_clip(clips[:, clip_idx], batch) for clip_idx in range(self.num_clips)]
        return {"logits": torch.stack(logits).mean(0)}


def videos_and_texts(batch: int) -> tuple[dict[str, object]]:
    """Four frames of each video, which make two clips, and two texts for it."""
    texts = tokens(2 * batch, 5, vocabulary=40)
    return ({"visual_inputs": torch.randn(batch, 4, 3, 8, 8), "text_input_ids": texts, "n_examples_list": [2] * batch},)


AUDIO_READS, VIDEO_READS = side("audio", 8), side("video", 8)
FUSED, CLIP = "appearance+motion+question", ("appearance+motion", 8)

CASES = (
    ZooCase(
        name="audio_visual_parsing",
        build=AudioVisualParsing,
        inputs=lambda batch: (torch.randn(batch, 5, 6), torch.randn(batch, 10, 9), torch.randn(batch, 5, 7)),
        modalities={"audio": ["audio"], "video": ["visual", "visual_st"]},
        # One layer is called in both directions. Both streams keep their homes by their residual connections and are
        # stacked for pooling, where a softmax over the two mixes them.
        points=(
            point(
                "hat_layer",
                "attention",
                pooled(AUDIO_READS, VIDEO_READS),
                pooled(AUDIO_READS, VIDEO_READS),
                calls=2,
                level="middle",
            ),
            point("", "concat", pooled(AUDIO_READS, VIDEO_READS)),
        ),
        normalize="audio",
        against="video",
    ),
    ZooCase(
        name="av_hubert",
        build=AVHubert,
        inputs=lambda batch: ({"audio": torch.randn(batch, 5, 6), "video": torch.randn(batch, 1, 6, 8, 8)},),
        modalities={"audio": ["source.audio"], "video": ["source.video"]},
        # Channels stand before time, but it is a sequence that layers have read and made token by token.
        points=(point("", "concat", pooled(side("audio", 8), side("video", 8))),),
        normalize="audio",
    ),
    ZooCase(
        name="hcrn",
        build=HCRN,
        inputs=lambda batch: (
            torch.randn(batch, 3, 3, 10),
            torch.randn(batch, 3, 7),
            tokens(batch, 5, vocabulary=40),
        ),
        modalities={"appearance": ["appearance"], "motion": ["motion"], "question": ["question"]},
        # Each unit is one point, however many subsets, scales and clips. At the upper level, the motion of the whole
        # video enters anew; the question is the very vector that the clips have seen, and is no news.
        points=(
            point("clip_level_motion_cond", "concat", flat(side("appearance", 8), side("motion", 8)), level="middle"),
            point("clip_level_question_cond", "concat", flat(side(*CLIP), side("question", 8)), level="middle"),
            point("video_level_motion_cond", "concat", pooled(side(FUSED, 8), side("motion", 8)), level="middle"),
            point("", "concat", flat(side(FUSED, 8), side("question", 8))),
        ),
        rules=({"id": "all", "match": {"kind": "concat"}, "pairs": "all"},),
        normalize="appearance",
    ),
    ZooCase(
        name="clipbert",
        build=ClipBert,
        inputs=videos_and_texts,
        modalities={"video": ["batch.visual_inputs"], "text": ["batch.text_input_ids"]},
        # Two clips are two rounds of one point; that their scores are averaged is no meeting.
        points=(point("transformer", "concat", pooled(side("text", 8), side("video", 8))),),
        normalize="text",
    ),
)
