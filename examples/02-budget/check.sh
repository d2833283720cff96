#!/bin/sh
# Applies the example, waits until one lease is Ready and the other refused, and ends both. Exit 0: it worked.
# Needs kubectl, a KUBECONFIG of a cluster with the operator, and a Ready GpuProvider that offers an RTX 4090.
set -eu
cd "$(dirname "$0")"
kubectl apply -f namespace.yaml -f budget.yaml
kubectl apply -f lease.yaml -f too-many.yaml
kubectl -n ml wait --for=condition=Ready gpulease/fits --timeout=15m
reason=""
for _ in $(seq 60); do
  reason=$(kubectl -n ml get gpulease too-many -o jsonpath='{.status.conditions[?(@.type=="Ready")].reason}')
  [ "$reason" = BudgetExceeded ] && break
  sleep 1
done
kubectl -n ml get gpuleases
kubectl -n ml get gpulease too-many -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}{"\n"}'
[ "$reason" = BudgetExceeded ]
# What is open is looked at three times a minute.
for _ in $(seq 60); do
  [ "$(kubectl get gpubudget ml -o jsonpath='{.status.gpus}')" = 1 ] && break
  sleep 1
done
kubectl get gpubudget ml
[ "$(kubectl get gpubudget ml -o jsonpath='{.status.gpus}')" = 1 ]
kubectl -n ml delete gpulease fits too-many --timeout=15m
kubectl delete gpubudget ml
echo "the leases are settled and gone"
