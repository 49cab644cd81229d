"""ComfyUI nodes for Pyramid Attention Broadcast. ``README.md`` says how to install them."""

from .nodes import PABModel, PABReport

NODE_CLASS_MAPPINGS = {"PABModel": PABModel, "PABReport": PABReport}
NODE_DISPLAY_NAME_MAPPINGS = {"PABModel": "PAB model", "PABReport": "PAB report"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
