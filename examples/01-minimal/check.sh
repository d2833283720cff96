#!/bin/sh
# Applies the example, waits until the pod has printed its GPU, and ends the lease. Exit 0: it worked.
# Needs kubectl, a KUBECONFIG of a cluster with the operator, and a Ready GpuProvider that offers an RTX 4090.
set -eu
cd "$(dirname "$0")"
kubectl apply -f namespace.yaml
# Pods are refused until their namespace has its service account.
until kubectl -n ml get serviceaccount default >/dev/null 2>&1; do sleep 1; done
kubectl apply -f lease.yaml
kubectl -n ml wait --for=condition=Ready gpulease/train --timeout=15m
kubectl apply -f pod.yaml
kubectl -n ml wait --for=condition=Ready pod/hello-gpu --timeout=5m
kubectl -n ml logs hello-gpu | grep -m1 '^GPU: GPU-'
kubectl -n ml get gpulease train
kubectl -n ml delete pod hello-gpu
kubectl -n ml delete gpulease train --timeout=15m
echo "the lease is settled and gone"
