"""PGI: a branch that helps a detector to learn, and is cut off afterwards.

A tiny detector learns to find digits on a photograph, with a branch that starts from the image;
what is deployed does not know of it. Run it: ``python examples/yolov9.py``.
"""

import torch

from repro.data.images.scenes import scenes
from repro.methods.yolov9 import Pgi, pgi_loss
from repro.models.vision.gelan import Gelan
from repro.toolbox.detection import AveragePrecision, DetectionLoss, detect

torch.manual_seed(0)
data = scenes(size=48, train_size=128, val_size=1, test_size=16, digits=1, largest=24)
x, y = data.splits["train"]
detector = Gelan(
    classes=1,
    stem=[8],
    first=None,
    stages=[[16, 16, 8], [16, 16, 8], [16, 16, 8]],
    down="adown",
    downs=[16, 16, 16],
    pooled=[16, 8],
    top_down=[[16, 16, 8], [16, 16, 8]],
    neck_downs=[16, 16],
    bottom_up=[[16, 16, 8], [16, 16, 8]],
    momentum=0.1,
    head={"bins": 8, "box_width": 16, "class_width": 16, "depth": 1, "groups": 1, "image_size": 48},
)
network, loss = Pgi(detector, "icn"), DetectionLoss()
optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
for _ in range(50):
    batch = torch.randint(len(x), (16,))
    main, auxiliary = network(x[batch].float() / 255)
    labels, objects = y[batch, :, 0].long(), y[batch, :, 1:5]
    optimizer.zero_grad()
    pgi_loss(loss, main, auxiliary, labels, objects).backward()
    optimizer.step()

cut = sum(p.numel() for p in network.auxiliary())
detector = network.strip().eval().fold()
images, targets = data.splits["test"][:2]
with torch.no_grad():
    found = detector(images.float() / 255)
metric = AveragePrecision()
for each, target in zip(detect(found.boxes, found.logits), targets, strict=True):
    metric.add(each, target[:, 1:5], target[:, 0])
kept = sum(p.numel() for p in detector.parameters())
print(f"{cut:,} parameters cut off, {kept:,} deployed: AP50 {metric.compute()['ap50']:.2f}")
