"""The generated abdomen: smooth shapes, painted back to front onto a grid of any size and direction.

All lengths are mm in the patient's own frame: x to the right, y to the front, z to the head, the origin in the middle
of the abdominal cavity. Sizes follow an adult; Hounsfield units (HU) a contrast-enhanced CT.
"""

import math
from collections.abc import Sequence

import numpy as np

LABELS = {
    0: "background",
    1: "liver",
    2: "spleen",
    3: "left kidney",
    4: "right kidney",
    5: "gallbladder",
    6: "aorta",
}
AIR, LUNG, GAS, FAT, MUSCLE, BONE = -1000.0, -830.0, -800.0, -100.0, 50.0, 400.0  # HU
_CAVITY = (128.0, 86.0)  # half width and half depth the positions below were measured in

Vector = Sequence[float] | np.ndarray
Block = tuple[slice, slice, slice]


class Canvas:
    """A scan being painted: `hu` float32 and `mask` uint8, both [D, H, W].

    `to_patient` [4, 4] maps an index (d, h, w, 1) to mm in the patient's frame.
    """

    def __init__(self, to_patient: np.ndarray, shape: tuple[int, int, int]):
        self.to_patient = to_patient
        self.hu = np.full(shape, AIR, np.float32)
        self.mask = np.zeros(shape, np.uint8)
        self.voxel = float(np.linalg.norm(to_patient[:3, :3], axis=0).mean())
        self.everywhere: Block = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))

    def block(self, centre: Vector, extent: Vector) -> Block:
        """The voxels that the box centre +- extent can reach."""
        inverse = np.linalg.inv(self.to_patient)
        middle = inverse[:3, :3] @ np.asarray(centre) + inverse[:3, 3]
        reach = np.abs(inverse[:3, :3]) @ np.asarray(extent) + 1
        low = np.clip(np.floor(middle - reach), 0, self.hu.shape).astype(int)
        high = np.clip(np.ceil(middle + reach) + 1, 0, self.hu.shape).astype(int)
        d, h, w = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return d, h, w

    def points(self, block: Block) -> np.ndarray:
        """x, y and z of each voxel of a block, float32 [3, d, h, w]."""
        m = self.to_patient.astype(np.float32)
        d, h, w = (axis.astype(np.float32) for axis in np.ogrid[block])
        return np.stack([m[i, 0] * d + m[i, 1] * h + (m[i, 2] * w + m[i, 3]) for i in range(3)])

    def waves(self, block: Block, rng: np.random.Generator, wavelength: float) -> np.ndarray:
        """A smooth random field of standard deviation 1: three plane waves of about that length in mm."""
        shape = tuple(s.stop - s.start for s in block)
        left, right = [], []
        for _ in range(3):
            direction = rng.normal(size=3)
            step = 2 * math.pi * direction / np.linalg.norm(direction) / (wavelength * rng.uniform(0.8, 1.6))
            phase = rng.uniform(0, 2 * math.pi) + step @ self.to_patient[:3, 3]
            # The cosine of a sum over the axes is the real part of a product: no cosine per voxel.
            d, h, w = (
                np.exp(1j * (step @ self.to_patient[:3, axis]) * np.arange(s.start, s.stop))
                for axis, s in enumerate(block)
            )
            plane = np.outer(d * np.exp(1j * phase), h).ravel()
            left += [np.real(plane), -np.imag(plane)]
            right += [np.real(w), np.imag(w)]
        total = np.stack(left, axis=1).astype(np.float32) @ np.stack(right).astype(np.float32)
        return total.reshape(shape) * np.float32(math.sqrt(2 / 3))

    def paint(self, block: Block, inside: np.ndarray, hu: float | np.ndarray, *, label: int = 0) -> None:
        """Lay a tissue over what is there; `inside` is the depth in mm below its surface, negative outside.

        Voxels that the surface cuts are mixed, as a scanner's are; a label takes those that are mostly inside.
        """
        occupancy = inside * np.float32(1 / self.voxel) + np.float32(0.5)
        np.clip(occupancy, 0, 1, out=occupancy)
        self.hu[block] += occupancy * (hu - self.hu[block])
        self.mask[block][occupancy > 0.5] = label


def rotation(degrees: Vector) -> np.ndarray:
    """Rotation [3, 3] about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        one = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        one[a, a] = one[b, b] = math.cos(angle)
        one[a, b], one[b, a] = -math.sin(angle), math.sin(angle)
        turn = one @ turn
    return turn


class Abdomen:
    """One patient's abdomen on a canvas. Everything that is random is drawn from `rng`, in an order that does not
    depend on the grid: a finer grid shows the same patient.
    """

    def __init__(self, canvas: Canvas, rng: np.random.Generator, cavity: tuple[float, float], *, fat: float):
        self.canvas = canvas
        self.rng = rng
        self.cavity = cavity
        self.fat = fat
        self.wall = rng.uniform(9, 14)  # muscle
        self.scale = np.array([cavity[0] / _CAVITY[0], cavity[1] / _CAVITY[1], rng.uniform(0.9, 1.1)])
        self.enhancement = rng.uniform(-1, 1)  # contrast phase: vessels, kidneys and bowel brighten together
        self.room = np.zeros(canvas.hu.shape, np.float32)  # depth in mm below the cavity's wall

    def paint(self) -> None:
        self._body()
        self._stomach_and_bowel()
        self._upper_organs()
        self._spine()
        self._kidneys()
        self._gallbladder()
        self._vessels()

    def _body(self) -> None:
        canvas, rng, block = self.canvas, self.rng, self.canvas.everywhere
        x, y, z = canvas.points(block)
        ripple = canvas.waves(block, rng, 260) * 4
        half = np.array(self.cavity)
        self.room = _ellipse(x, y, half) + ripple
        back = 14  # the muscles of the back are thicker than those of the belly
        muscle = _ellipse(x, y + back / 2, half + self.wall + np.array([0, back / 2])) + ripple
        outer = half + self.wall + self.fat + np.array([4, back / 2])
        skin = _ellipse(x, y + back / 2, outer) + ripple
        table = 4 - np.abs(y + outer[1] + back / 2 + 12 - x * x / 2500)
        canvas.paint(block, np.minimum(table, 190 - np.abs(x)), -60)
        canvas.paint(block, skin, FAT + 8 * canvas.waves(block, rng, 60))
        canvas.paint(block, np.minimum(skin, 3 - skin), 20)
        canvas.paint(block, muscle, MUSCLE + 8 * canvas.waves(block, rng, 40))
        spread = 2 * math.pi / rng.uniform(26, 32)
        ribs = np.minimum(4 - np.abs(self.room + self.wall * 0.5), 9 * (np.cos(spread * (z - 0.5 * y)) - 0.45))
        ribs = np.minimum(ribs, np.minimum(45 - y, z + 35 + 0.3 * y))
        canvas.paint(block, ribs, BONE * 0.8)
        canvas.paint(block, self.room, FAT + 10 + 12 * canvas.waves(block, rng, 50))
        dome = (rng.uniform(88, 104) - 0.0028 * (x * x + y * y)) * self.scale[2]
        canvas.paint(block, np.minimum(z - dome, self.room - 2), LUNG + 25 * canvas.waves(block, rng, 30))

    def _stomach_and_bowel(self) -> None:
        """Not labelled; their HU are near those of the gallbladder, the kidneys and the liver."""
        rng = self.rng
        for _ in range(14):
            centre = (rng.uniform(-80, 80), rng.uniform(-8, 64), rng.uniform(-125, -18))
            turn = (rng.uniform(-40, 40), rng.uniform(-90, 90), rng.uniform(-60, 60))
            self._gut(centre, (13, 13, rng.uniform(26, 46)), turn, bend=rng.uniform(-12, 12))
        self._gut((-100, -6, -48), (16, 18, 66), (0, 0, 0), bend=8, kidney_like=0.6)
        self._gut((98, 2, -64), (21, 22, 50), (0, 0, 0), bend=-6, kidney_like=0.6)
        self._gut((0, 64, -14), (84, 17, 17), (0, 0, 0), bend=0)
        self._gut((28, 14, -26), (14, 14, 38), (0, 15, 0), bend=8, kidney_like=0.0)
        self._gut((-46, 40, 34), (38, 32, 48), (15, 25, 10), bend=0, kidney_like=0.0)
        pancreas = rng.uniform(45, 80)
        self._organ((-4, 2, 14), (48, 12, 15), (0, 10, 8), pancreas, bend=-10, bend_axis=0)

    def _gut(self, centre: Vector, radii: Vector, turn: Vector, *, bend: float, kidney_like: float = 0.4) -> None:
        rng = self.rng
        like_kidney = rng.uniform() < kidney_like
        hu = self._kidney_hu() + rng.normal(0, 12) if like_kidney else rng.uniform(15, 60)
        gas = rng.uniform() < 0.3
        block, depth, centre = self._organ(centre, radii, turn, hu, bend=bend, shift=8)
        if gas:  # rises to the front: the patient lies on the back
            level = self.canvas.points(block)[1] - np.float32(centre[1] + 0.25 * min(radii))
            self.canvas.paint(block, np.minimum(level, depth - 2), GAS)

    def _upper_organs(self) -> None:
        """Liver, two lobes melted into one, and spleen."""
        canvas, rng = self.canvas, self.rng
        shift = rng.normal(0, 5, 3)
        size = rng.uniform(0.88, 1.1)
        right = self._place((66, 6, 30), shift=3) + shift
        left = self._place((2, 50, 50), shift=6) + shift
        right_radii = np.array([62, 66, 70]) * self.scale * size
        left_radii = np.array([rng.uniform(48, 76), 27, 36]) * self.scale * size
        right_turn, left_turn = self._turn((0, 15, 0)), self._turn((0, -10, 5))
        block = canvas.block((right + left) / 2, (130, 100, 100))
        points = canvas.points(block)
        depth = _melt(
            _ellipsoid(points, right, right_radii, right_turn), _ellipsoid(points, left, left_radii, left_turn), 18
        )
        depth = np.minimum(depth + 3 * canvas.waves(block, rng, 70), self.room[block] - 3)
        hu = 60 + rng.normal(0, 10)
        canvas.paint(block, depth, hu + 5 * canvas.waves(block, rng, 45), label=1)
        hu = 50 + rng.normal(0, 10)
        radii = np.array([29, 48, 50]) * rng.uniform(0.85, 1.2)
        self._organ((-94, -28, 38), radii, (10, 12, 15), hu, bend=10, bend_axis=1, label=2, shift=7)

    def _spine(self) -> None:
        canvas, rng = self.canvas, self.rng
        bow = rng.uniform(-0.0006, 0.0006)
        self.spine = np.array([rng.normal(0, 3), -62 * self.scale[1]])
        block = canvas.block((self.spine[0], self.spine[1] - 15, 0), (85, 65, 400))
        x, y, z = canvas.points(block)
        x, y = x - np.float32(self.spine[0]) - np.float32(bow) * z * z, y - np.float32(self.spine[1])
        for side in (-1, 1):
            back = _ellipse(x - side * 34, y + 34, (29, 19))
            canvas.paint(block, back, MUSCLE + 8 * canvas.waves(block, rng, 30))
            belly = np.clip(18 - 0.12 * z, 4, 20)  # psoas: thicker towards the pelvis
            psoas = belly - np.hypot(x - side * (30 - 0.06 * z), y - 4)
            canvas.paint(block, psoas, MUSCLE + 4 + 6 * canvas.waves(block, rng, 30))
        cycle = np.cos(2 * math.pi / rng.uniform(34, 40) * z)
        vertebra = 20 + 2 * cycle - np.hypot(x, y * 1.15)
        canvas.paint(block, vertebra, np.where(cycle < -0.75, 90, BONE * 0.85) + 20 * canvas.waves(block, rng, 15))
        canvas.paint(block, np.minimum(vertebra - 4, 4 * (cycle + 0.7)), BONE * 0.5 + 20 * canvas.waves(block, rng, 20))
        canvas.paint(block, np.minimum(6 - np.abs(x), np.minimum(-14 - y, y + 48)), BONE * 0.75)
        canvas.paint(block, np.minimum(5 - np.abs(y + 24), 34 - np.abs(x)) + 4 * cycle, BONE * 0.75)
        canvas.paint(block, 8 - np.hypot(x, y + 26), 30)

    def _kidneys(self) -> None:
        rng = self.rng
        missing = rng.choice([3, 4]) if rng.uniform() < 0.05 else 0
        size = rng.uniform(0.88, 1.12)
        for label, side, height in ((3, -1, -6), (4, 1, -22)):
            radii = np.array([29, 28, 55]) * size * rng.uniform(0.93, 1.07)
            place = (side * 66, -38, height + rng.normal(0, 8))
            hu = self._kidney_hu() + rng.normal(0, 6)
            if label == missing:
                continue
            block, depth, centre = self._organ(
                place, radii, (-8, side * 12, 0), hu, bend=side * -9, label=label, shift=5, wall=2
            )
            sinus = centre - np.array([side * 15, -3, 0])  # fat and vessels, no part of the kidney
            inner = _ellipsoid(self.canvas.points(block), sinus, (12, 9, 22), np.eye(3))
            self.canvas.paint(block, np.minimum(inner, depth + 6), FAT + 50)

    def _gallbladder(self) -> None:
        removed = self.rng.uniform() < 0.15
        radii = np.array([19, 21, 34]) * self.rng.uniform(0.8, 1.2)
        hu = 10 + self.rng.normal(0, 6)
        if not removed:
            self._organ((42, 42, -16), radii, (25, 0, 0), hu, label=5, shift=6, ripple=1)

    def _vessels(self) -> None:
        """The vena cava, right of the midline, fills later than the aorta beside it and is not labelled."""
        canvas, rng = self.canvas, self.rng
        hu = 180 + 35 * self.enhancement
        front = self.spine[1] + 19
        for side, label in ((1, 0), (-1, 6)):
            wide, deep = (rng.uniform(11, 15), rng.uniform(9, 13)) if side > 0 else (rng.uniform(11, 15),) * 2
            x0 = self.spine[0] + side * (wide + rng.uniform(0, 7)) + (2 if side > 0 else -1)
            y0 = front + deep + rng.uniform(0, 6)
            lean, bow, tilt = rng.uniform(-0.05, 0.05), rng.uniform(-0.0008, 0.0008), rng.uniform(-0.06, 0.02)
            block = canvas.block((x0, y0, 0), (wide + 25, deep + 25, 400))
            x, y, z = canvas.points(block)
            away_x = (x - np.float32(x0) - lean * z - bow * z * z) / wide
            away_y = (y - np.float32(y0) + tilt * z) / deep
            depth = (1 - np.hypot(away_x, away_y)) * math.sqrt(wide * deep) + 0.8 * canvas.waves(block, rng, 50)
            late = rng.uniform(30, 70) if side > 0 else 0.0
            blood = hu - late + rng.normal(0, 10) + 4 * canvas.waves(block, rng, 40)
            canvas.paint(block, depth, blood, label=label)

    def _kidney_hu(self) -> float:
        return 140 + 25 * self.enhancement

    def _place(self, centre: Vector, *, shift: float) -> np.ndarray:
        return np.asarray(centre) * self.scale + self.rng.normal(0, shift, 3)

    def _turn(self, degrees: Vector) -> np.ndarray:
        return rotation(np.asarray(degrees) + self.rng.normal(0, 8, 3))

    def _organ(
        self,
        centre: Vector,
        radii: Vector,
        turn: Vector,
        hu: float,
        *,
        bend: float = 0.0,
        bend_axis: int = 2,
        label: int = 0,
        shift: float = 6.0,
        ripple: float = 2.0,
        wall: float = 3.0,
    ) -> tuple[Block, np.ndarray, np.ndarray]:
        """Paint a deformed ellipsoid that keeps `wall` mm from the cavity's wall; its block, depth and centre.

        `bend` in mm is how far its ends along `bend_axis` are carried along x (along z when the axis is x).
        """
        canvas, rng = self.canvas, self.rng
        middle = self._place(centre, shift=shift)
        radii = np.asarray(radii) * self.scale.mean() * rng.uniform(0.92, 1.08, 3)
        matrix = self._turn(turn)
        reach = np.abs(matrix) @ radii * 1.1 + abs(bend) * 1.5 + 4 * ripple
        block = canvas.block(middle, reach)
        depth = _ellipsoid(canvas.points(block), middle, radii, matrix, bend=bend, bend_axis=bend_axis)
        depth = np.minimum(depth + ripple * canvas.waves(block, rng, 45), self.room[block] - wall)
        canvas.paint(block, depth, hu + 5 * canvas.waves(block, rng, 30), label=label)
        return block, depth, middle


def _ellipse(x: np.ndarray, y: np.ndarray, half: Vector) -> np.ndarray:
    """Depth in mm below the surface of a cylinder along z with a rounded-rectangular section."""
    a, b = (np.float32(value) for value in half)
    u, v = np.abs(x) / a, np.abs(y) / b
    radius = (u * u * np.sqrt(u) + v * v * np.sqrt(v)) ** np.float32(0.4)  # |u|^2.5 + |v|^2.5: fast, and a body's shape
    return (1 - radius) * np.sqrt(a * b)


def _ellipsoid(
    points: np.ndarray, centre: Vector, radii: Vector, turn: np.ndarray, *, bend: float = 0.0, bend_axis: int = 2
) -> np.ndarray:
    """Depth in mm below the surface of a (bent) ellipsoid: right at the surface, rough far from it."""
    moved = points - np.asarray(centre, np.float32)[:, None, None, None]
    u = np.tensordot(turn.T.astype(np.float32), moved, axes=1)
    a = [np.float32(r) for r in radii]
    if bend:
        across = 2 if bend_axis == 0 else 0
        u[across] -= np.float32(bend) * ((u[bend_axis] / a[bend_axis]) ** 2 - np.float32(0.3))
    radius = np.sqrt((u[0] / a[0]) ** 2 + (u[1] / a[1]) ** 2 + (u[2] / a[2]) ** 2)
    return (1 - radius) * np.float32(np.prod(a) ** (1 / 3))


def _melt(one: np.ndarray, other: np.ndarray, width: float) -> np.ndarray:
    """Union of two shapes with a rounded seam (polynomial smooth maximum; Quilez 2013)."""
    blend = np.maximum(width - np.abs(one - other), 0) / np.float32(width)
    return np.maximum(one, other) + blend * blend * np.float32(width / 4)
