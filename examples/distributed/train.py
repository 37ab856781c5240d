"""RegBN fitted on the joined batch of several processes, on one machine without a GPU:

    torchrun --standalone --nproc-per-node 2 examples/distributed/train.py
    accelerate launch --multi_gpu --num_processes 2 examples/distributed/train.py

Each process sees half of every batch of a small two-branch regression in which the second modality leaks into the
first. `convert_sync_regbn` makes them fit one projection on all rows; at the end the processes compare theirs. With
`--fsdp` the parameters are sharded (FSDP2) in place of being copied to each process.
"""

from __future__ import annotations

import argparse
import gc

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from regbn_surgery import RegBN, convert_sync_regbn


class TwoBranches(nn.Module):
    """Two encoders, RegBN between them, a linear head on both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(20, 32), nn.ReLU())
        self.audio = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.regbn = RegBN(32, 16, normalize_input=True, affine=True)
        self.head = nn.Linear(32 + 16, 1)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        f, g = self.regbn(self.image(image), self.audio(audio))
        return self.head(torch.cat([f, g], dim=1)).squeeze(1)


def make_batch(step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same batch on every process; each then takes its own rows."""
    generator = torch.Generator().manual_seed(step)
    audio = torch.randn(size, 12, generator=generator)
    image = torch.randn(size, 20, generator=generator)
    image[:, :12] += 0.5 * audio
    target = image[:, 12:].sum(1) + 0.1 * torch.randn(size, generator=generator)
    return image, audio, target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64, help="over all processes")
    parser.add_argument("--fsdp", action="store_true", help="fully_shard in place of DistributedDataParallel")
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    try:
        train(arguments.steps, arguments.batch_size, fsdp=arguments.fsdp)
        # The model and its threads are gone, and no process leaves while another still needs it.
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def train(steps: int, batch_size: int, *, fsdp: bool) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    plain = convert_sync_regbn(TwoBranches())
    mesh = init_device_mesh("cpu", (world,))
    model = fully_shard(plain, mesh=mesh) if fsdp else DistributedDataParallel(plain)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        image, audio, target = (x[rank::world] for x in make_batch(step, batch_size))
        loss = nn.functional.mse_loss(model(image, audio), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step + 1) % max(steps // 5, 1) == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    W = plain.regbn.W
    low, high = W.clone(), W.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if rank == 0:
        print(f"{world} processes; W differs between the ranks by {(high - low).abs().max().item():g}")


if __name__ == "__main__":
    main()
