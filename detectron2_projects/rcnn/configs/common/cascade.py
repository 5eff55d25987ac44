# The three stages of Cascade R-CNN, with ViTDet's heads: four convolutions and one linear layer, layer norm.
from detectron2 import model_zoo

roi_heads = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
for head in roi_heads.box_heads:
    head.update(conv_dims=[256, 256, 256, 256], fc_dims=[1024], conv_norm="LN")
roi_heads.mask_head.conv_norm = "LN"
