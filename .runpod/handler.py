"""Where RunPod's hub looks for the handler; the image runs the module itself."""  # noqa: INP001 - a script on its own, looked for by this path

from gpu_server.runpod_handler import main

if __name__ == "__main__":
    main()
