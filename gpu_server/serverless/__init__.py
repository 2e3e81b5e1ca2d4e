"""The serverless worker: jobs as RunPod hands them out, carried out by the GPU service's parts.

Nothing here knows RunPod's SDK; `gpu_server.runpod_handler` is the only module that imports it.
"""
