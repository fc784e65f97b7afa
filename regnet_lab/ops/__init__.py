"""Displacement-field operations on 2D and 3D tensors.

A displacement field ``u`` has shape (B, D, *spatial), is measured in voxels of its own grid, and
its channel k points along array axis k.  It warps backward: ``warp(m, u)(x) = m(x + u(x))``, and
points of the fixed grid map the same way, ``x_moving = x + u(x)``.  A voxel is a cell of width one
centered at its index, so a grid of n voxels covers [-1/2, n - 1/2].
"""

from regnet_lab.ops.fields import affine_field as affine_field
from regnet_lab.ops.fields import compose as compose
from regnet_lab.ops.fields import determinant as determinant
from regnet_lab.ops.fields import forward_difference as forward_difference
from regnet_lab.ops.fields import gradient as gradient
from regnet_lab.ops.fields import integrate as integrate
from regnet_lab.ops.fields import invert as invert
from regnet_lab.ops.fields import jacobian_determinant as jacobian_determinant
from regnet_lab.ops.fields import transform_points as transform_points
from regnet_lab.ops.precision import full_precision as full_precision
from regnet_lab.ops.resampling import apply_along_axes as apply_along_axes
from regnet_lab.ops.resampling import crop as crop
from regnet_lab.ops.resampling import resize as resize
from regnet_lab.ops.resampling import resize_field as resize_field
from regnet_lab.ops.resampling import resize_nearest as resize_nearest
from regnet_lab.ops.sampling import identity_grid as identity_grid
from regnet_lab.ops.sampling import sample as sample
from regnet_lab.ops.sampling import sample_at as sample_at
from regnet_lab.ops.sampling import sample_nearest as sample_nearest
from regnet_lab.ops.sampling import warp as warp
