"""The graph of one group of images."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage

from pgnn_geo.errors import InputError
from pgnn_geo.graph.geometry import GroupGeometry


class GroupData(Data):
    r"""The complete graph of one group of images; one node is one patch.

    Batches, splits, moves and saves like any :class:`~torch_geometric.data.Data`.

    Args:
        x (torch.Tensor): The features of each patch.
        pos (torch.Tensor): The box of each patch in feature pixels, xyxy, clipped to the image.
            A background node has the whole image.
        node_class (torch.Tensor): The class of each patch, 0 for background.
        image_batch (torch.Tensor): The image of each patch, counted within the group. Named so
            that PyG shifts it; :meth:`__inc__` counts images without nodes as well.
        geometry (GroupGeometry): Feature size, number of images and kind of patches. In a
            :class:`~torch_geometric.data.Batch`, the list of them.
        edge_index (torch.Tensor, optional): The edges, source to target. (default: :obj:`None`)

    Shapes:
        - **x:** :math:`(V, C, p_h, p_w)`
        - **pos:** :math:`(V, 4)`
        - **node_class, image_batch:** :math:`(V)`
        - **edge_index:** :math:`(2, |\mathcal{E}|)`
    """

    @property
    def num_images(self) -> int:
        """Number of images, those without any node included."""
        return sum(g.num_images for g in self._geometries())

    @property
    def num_node_features(self) -> int:
        """Number of channels; PyG would take the last dimension, which is a position's."""
        x = self.get("x")
        return x.size(1) if isinstance(x, Tensor) and x.dim() > 2 else super().num_node_features

    @property
    def max_num_nodes(self) -> int:
        """Number of nodes of the largest group, known without waiting for the device."""
        if hasattr(self, "_max_num_nodes"):  # of a batch that `PatchGraphBuilder` made
            return self._max_num_nodes
        if hasattr(self, "_slice_dict"):  # of one that PyG made
            return int(self._slice_dict["x"].diff().max())
        return int(self.num_nodes or 0)

    def shared_geometry(self) -> GroupGeometry:
        """The geometry of the groups, whose numbers of images may differ.

        Raises:
            InputError: If feature size or kind of patches differ between groups.
        """
        kinds = {replace(g, num_images=0) for g in self._geometries()}
        if len(kinds) != 1:
            raise InputError(
                f"`batch`: expected groups of one feature size and kind of patches, got {kinds}; "
                "handle them one by one, as `batch[i]`"
            )
        return kinds.pop()

    def _geometries(self) -> list[GroupGeometry]:
        return _flat(self.geometry)

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        # Counted, not read off the largest id: the last image or group may have no node.
        if key == "image_batch":
            return self.num_images
        if key == "batch":
            return len(self._geometries())
        return super().__inc__(key, value, *args, **kwargs)

    def is_node_attr(self, key: str) -> bool:
        """Whether the attribute has one entry per node."""
        # In a batch, `geometry` is a list as long as there are groups, maybe also nodes.
        return key != "geometry" and super().is_node_attr(key)

    def validate(self, raise_on_error: bool = True) -> bool:
        """Checks that the fields fit each other.

        Args:
            raise_on_error (bool, optional): Raise rather than return :obj:`False`.
                (default: :obj:`True`)

        Raises:
            InputError: If a field of this class is missing or does not fit the others.
        """
        problem = self._problem()
        if problem is not None and raise_on_error:
            raise InputError(problem)
        return super().validate(raise_on_error) and problem is None

    def _problem(self) -> str | None:
        v = self.num_nodes
        shapes = {"x": (v, ...), "pos": (v, 4), "node_class": (v,), "image_batch": (v,)}
        for key, shape in shapes.items():
            value = self.get(key)
            found = tuple(value.shape) if isinstance(value, Tensor) else None
            if found is None or ((*found[:1], ...) if ... in shape else found) != shape:
                return f"`{key}`: expected a tensor of shape {shape}, got {found}"
        if "geometry" not in self:
            return "`geometry`: missing"
        image = self.image_batch
        if v and not (image[0] >= 0 and (image.diff() >= 0).all() and image[-1] < self.num_images):
            return f"`image_batch`: expected sorted ids of {self.num_images} images, got {image}"
        if v and self.node_class.min() < 0:
            return f"`node_class`: expected 0 or above, got {int(self.node_class.min())}"
        return None


def _flat(geometry: Any) -> list[GroupGeometry]:
    if isinstance(geometry, GroupGeometry):
        return [geometry]
    return [one for part in geometry for one in _flat(part)]  # batches of batches nest lists


# The class that PyG makes for batches of `GroupData`. `Batch(_base_cls=GroupData)` looks it up
# through a metaclass, which compilers do not follow.
_GroupDataBatch: Any = type(Batch(_base_cls=GroupData))


def new_batch() -> Batch:
    """An empty batch of groups."""
    out = _GroupDataBatch.__new__(_GroupDataBatch)
    Data.__init__(out)
    return out


SAFE_GLOBALS = [GroupData, GroupGeometry, DataEdgeAttr, DataTensorAttr, GlobalStorage]
"""What :func:`torch.load` has to be told to load groups, or lists of them, without trusting the
file with more: PyG lists :class:`~torch_geometric.data.Data` as safe, but not the classes inside
it. A batch cannot be loaded so; save :obj:`batch.to_data_list()`.

.. code-block:: python

    with torch.serialization.safe_globals(SAFE_GLOBALS):
        groups = torch.load("groups.pt")
"""
