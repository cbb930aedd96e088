"""What importers are made of.

checkpoint, options, datasets   the file and its tensors; what is told of it, or known of its training code
torch_file, mxnet_file, ...     containers of other frameworks, as arrays and nodes
layers, torch_layers,           layers from modules of PyTorch, from operators of TensorFlow, and from
tf_layers, graph, operations    graphs of any framework
zeros                           whether a sign can be taken of 0
original, graph_original, ...   the networks as they were, to compare with
"""
