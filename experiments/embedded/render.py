"""Draws scenes as video in batches: analytic coverage per pixel, so every resolution is an area average of the same picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .scenes import BACKGROUNDS, COLOURS, SHAPES, Placed, Scene, Thing, backdrop, camera_path, place

NUM_WAVES = 32  # cosines in a noise texture
NOISE_CYCLES = (8.0, 20.0)  # a frame side: wavelengths of 7.2 to 18 pixels at 144
EDGE_WIDTH = 0.012  # softness of texture edges, in frame sides
THING_WIDTH = 13  # numbers a packed thing takes
MORTAR = 0.09  # of a brick's length


def pack(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as float64 [B, 40] on the CPU: 14 numbers of background and camera, then 13 a thing (radius 0 if absent)."""
    return torch.tensor([_pack_one(scene) for scene in scenes], dtype=torch.float64)


def _pack_one(scene: Scene) -> list[float]:
    back = backdrop(scene)
    things = [number for thing, placed in zip(scene.things, place(scene), strict=True) for number in _pack_thing(thing, placed)]
    things += [0.0] * (2 * THING_WIDTH - len(things))
    head = [BACKGROUNDS.index(scene.background), back.scale, back.angle, *back.phase, back.texture_seed, *back.low, *back.high]
    return [*head, *camera_path(scene.camera), *things]


def _pack_thing(thing: Thing, placed: Placed) -> list[float]:
    path = (placed.radius, *placed.start, *placed.delta, placed.bounce, placed.orbit, placed.phase)
    return [SHAPES.index(thing.shape), *COLOURS[thing.colour], *path, 1.0]


def render(scenes: Sequence[Scene], frames: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Video [B, 3, F, H, W] in [-1, 1], float32. Fewer frames show the whole motion more coarsely."""
    return render_packed(pack(scenes), frames, height, width, device)


def render_packed(packed: Tensor, frames: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """`render` of scenes packed by `pack`."""
    packed = packed.to(device=device)
    times = torch.linspace(0, 1, frames, dtype=torch.float32, device=packed.device)
    x = (torch.arange(width, dtype=torch.float32, device=packed.device) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float32, device=packed.device) + 0.5) / height
    pixel = 1 / min(height, width)
    video = _background(packed, times, x, y, pixel)
    for i in range(2):
        part = packed[:, 14 + i * THING_WIDTH :][:, :THING_WIDTH].float()
        if bool((part[:, 4] > 0).any()):
            video = _draw(video, part, times, x, y, pixel)
    return video.mul_(2).sub_(1).clamp_(-1, 1)


def _background(packed: Tensor, times: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """[B, 3, F, H, W] in [0, 1]: the texture as the camera sees it, between the two tones."""
    level = torch.empty(len(packed), len(times), len(y), len(x), device=packed.device)
    for index, name in enumerate(BACKGROUNDS):
        (rows,) = (packed[:, 0] == index).nonzero(as_tuple=True)
        if len(rows):
            level[rows] = _texture(name, packed[rows], times, x, y, pixel)
    low, high = packed[:, 6:9].float()[..., None, None, None], packed[:, 9:12].float()[..., None, None, None]
    return torch.lerp(low, high, level[:, None])


def _texture(name: str, rows: Tensor, times: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """Level [B, F, H, W] in [0, 1] (noise: 0.5 plus a unit normal field)."""
    numbers = rows[:, :5].float()[:, :, None, None]
    scale, angle, phase_x, phase_y = (numbers[:, i] for i in range(1, 5))  # [B, 1, 1]
    shrink = _camera_shrink(rows, times)  # [B, F, 1]
    pan = rows[:, 12].float()[:, None, None] * times[None, :, None]
    u, v = 0.5 + (x - 0.5) * shrink + pan, 0.5 + (y - 0.5) * shrink  # [B, F, W], [B, F, H]
    width = torch.clamp(pixel * shrink, min=EDGE_WIDTH)
    if name == "plain":
        return torch.zeros(len(rows), len(times), len(y), len(x), device=rows.device)
    if name == "noise":
        return 0.5 + _noise(rows, u, v, pixel * shrink)
    if name in ("gradient", "stripes"):
        along = (u[..., None, :] * angle.cos()[..., None] + v[..., :, None] * angle.sin()[..., None]) / scale[..., None]
        if name == "gradient":
            centre = (angle.cos() + angle.sin())[..., None] / 2 / scale[..., None]
            return 0.5 + 0.5 * torch.sin(2 * math.pi * (along - centre + 0.06 * (phase_x[..., None] - 0.5)))
        spread = (angle.cos().abs() + angle.sin().abs()) * width / scale
        return _covered(along + phase_x[..., None], spread[..., None], 0.5)
    if name == "checker":
        a = _covered(u / (2 * scale) + phase_x, width / (2 * scale), 0.5)[..., None, :]
        b = _covered(v / (2 * scale) + phase_y, width / (2 * scale), 0.5)[..., :, None]
        return a * b + (1 - a) * (1 - b)
    return _bricks(u / scale + phase_x, v / scale + phase_y, width / scale)


def _camera_shrink(rows: Tensor, times: Tensor) -> Tensor:
    zoom = rows[:, 13].float()[:, None, None]
    return zoom ** -times[None, :, None]


def _covered(position: Tensor, width: Tensor, duty: float) -> Tensor:
    """Share of [position - width/2, position + width/2] where the square wave of period 1 is on (its first `duty`)."""

    def integral(at: Tensor) -> Tensor:
        whole = at.floor()
        return whole * duty + (at - whole).clamp(max=duty)

    return (integral(position + width / 2) - integral(position - width / 2)) / width


def _bricks(u: Tensor, v: Tensor, width: Tensor) -> Tensor:
    """Rows of bricks twice as long as high, every other row shifted by half a brick; u, v, width in brick lengths."""
    body_y = _covered(2 * v, 2 * width, 1 - 2 * MORTAR)[..., :, None]
    odd = _covered(v, width, 0.5)[..., :, None]
    even_x, odd_x = (_covered(u + shift, width, 1 - MORTAR)[..., None, :] for shift in (0.0, 0.5))
    return body_y * (odd * odd_x + (1 - odd) * even_x)


def _noise(rows: Tensor, u: Tensor, v: Tensor, width: Tensor) -> Tensor:
    """Unit-variance sum of plane waves of 8 to 20 cycles a side, box-filtered over the pixel: one matrix product a frame."""
    draws = _hash_uniform(rows[:, 5].long(), 3 * NUM_WAVES).float().view(-1, 1, 3, NUM_WAVES)  # [B, 1, 3, K]
    cycles = NOISE_CYCLES[0] + (NOISE_CYCLES[1] - NOISE_CYCLES[0]) * draws[:, :, 0]
    f_u, f_v = cycles * torch.cos(2 * math.pi * draws[:, :, 1]), cycles * torch.sin(2 * math.pi * draws[:, :, 1])
    gain = math.sqrt(2 / NUM_WAVES) * torch.sinc(f_u * width) * torch.sinc(f_v * width)  # [B, F, K]
    turn_u = 2 * math.pi * (u[..., :, None] * f_u[..., None, :] + draws[:, :, 2][..., None, :])  # [B, F, W, K]
    turn_v = 2 * math.pi * v[..., :, None] * f_v[..., None, :]
    left = torch.cat([turn_v.cos(), -turn_v.sin()], -1) * torch.cat([gain, gain], -1)[..., None, :]
    return left @ torch.cat([turn_u.cos(), turn_u.sin()], -1).transpose(-1, -2)


def _hash_uniform(seeds: Tensor, num: int) -> Tensor:
    """[B, num] float64 in [0, 1), the same on every device: a 64-bit integer mix of (seed, index)."""
    mixed = seeds[:, None] * 1_000_003 + torch.arange(num, device=seeds.device) * 7_919 + 12_345
    for multiplier in (0x45D9F3B, 0x2C1B3C6D):
        mixed = ((mixed ^ (mixed >> 15)) * multiplier) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)).double() / 2**32


def _draw(video: Tensor, part: Tensor, times: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """Paints one thing a clip over `video`, by the signed distance of each pixel centre to its outline."""
    centre_x, centre_y = _path(part, times)  # [B, F]
    radius = part[:, 4, None, None, None]
    dx = (x - centre_x[..., None])[:, :, None, :]
    dy = (y - centre_y[..., None])[:, :, :, None]
    shape = part[:, 0, None, None, None]
    distance = torch.zeros(len(part), len(times), len(y), len(x), device=part.device)
    for index, outline in enumerate((_circle, _square, _triangle, _cross)):
        distance = torch.where(shape == index, outline(dx, dy, radius), distance)
    cover = (0.5 - distance / pixel).clamp(0, 1) * (radius > 0)
    return torch.lerp(video, part[:, 1:4, None, None, None], cover[:, None])


def _path(part: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    x0, y0, delta_x, delta_y, bounce, orbit, phase = (part[:, i, None] for i in range(5, 12))
    angle = 2 * math.pi * times[None]
    x = x0 + delta_x * times + orbit * torch.cos(angle + phase)
    return x, y0 + delta_y * times + orbit * torch.sin(angle + phase) - bounce * torch.sin(angle).abs()


def _circle(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    return torch.sqrt(dx**2 + dy**2) - radius


def _square(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(dx.abs(), dy.abs()) - 0.89 * radius


def _triangle(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Equilateral, point up, circumradius 1.45 radius about its centroid."""
    inner = 0.725 * radius
    return torch.maximum(dy - inner, 0.8660254 * dx.abs() - 0.5 * dy - inner)


def _cross(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Two bars, half-length 1.15 and half-width 0.38 radius."""
    long, short = 1.15 * radius, 0.38 * radius
    ax, ay = dx.abs(), dy.abs()
    return torch.minimum(torch.maximum(ax - long, ay - short), torch.maximum(ay - long, ax - short))
