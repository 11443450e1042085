# JustRL on verl's published image, for clusters that want a container. Not built and not tried here.
# The image has CUDA, torch, vLLM and flash-attn in the versions of requirements.txt, and verl's dependencies, not verl.
#
#   docker build -t justrl . && docker run --gpus all --ipc=host --network=host -v "$PWD":/justrl justrl demo
#   apptainer build justrl.sif docker-daemon://justrl:latest
FROM verlai/verl:vllm024.dev2

COPY requirements.txt /tmp/
RUN grep -vE '^(torch|torchvision|torchaudio|triton|vllm|flash-attn|nvidia-(cu|nccl|nv)[a-z0-9-]*|cuda-[a-z-]*)==' /tmp/requirements.txt \
      >/tmp/lacking.txt && \
    python3 -m pip install --no-cache-dir --no-deps -r /tmp/lacking.txt

# The packages are the image's, the code is the mounted checkout's, so that outputs stay when the container ends.
ENV JUSTRL_SETUP=0
WORKDIR /justrl
ENTRYPOINT ["./run_justrl.sh"]
