"""YOLOv9: what the room needs beside `repro.methods.yolov9`."""
