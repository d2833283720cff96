#!/bin/sh
# Runs a Job over two leases, waits until both workers are done, shows where and how, ends the leases. Exit 0: it worked.
# Needs kubectl, a KUBECONFIG of a cluster with the operator, and a Ready GpuProvider that offers two RTX 4090s and to whom
# something was paid before: of a stranger it takes one lease at a time.
set -eu
cd "$(dirname "$0")"
kubectl apply -f namespace.yaml
# Pods are refused until their namespace has its service account.
until kubectl -n training get serviceaccount default >/dev/null 2>&1; do sleep 1; done
kubectl apply -f coordinator.yaml -f leases.yaml
kubectl -n training wait --for=condition=Ready gpulease/worker-a gpulease/worker-b --timeout=15m
kubectl apply -f job.yaml
kubectl -n training wait --for=condition=Complete job/train --timeout=5m
kubectl -n training get gpuleases
kubectl -n training get job train
kubectl -n training get pods -o wide
[ "$(kubectl -n training get job train -o jsonpath='{.status.completedIndexes}')" = 0,1 ]
# Of each worker: its node, and how often it was started again.
of() { kubectl -n training get pods -l "job-name=train,batch.kubernetes.io/job-completion-index=$1" -o jsonpath="{.items[*]$2}"; }
leased=$(kubectl -n training get gpuleases -o jsonpath='{range .items[*]}{.status.nodeName}{"\n"}{end}' | sort)
[ "$(for worker in 0 1; do of $worker .spec.nodeName; echo; done | sort)" = "$leased" ]
[ "$(of 1 '.status.containerStatuses[*].restartCount')" = 1 ]
for worker in 0 1; do
  log=$(kubectl -n training logs "$(of $worker .metadata.name)")
  echo "$log"
  case $worker,$log in
    0,*"is done, with seed 42") ;;
    1,*"goes on after step 3"*"is done, with seed 42") ;; # which worker 0 told it
    *) exit 1 ;;
  esac
done
kubectl delete -f job.yaml
kubectl -n training delete gpulease worker-a worker-b --timeout=15m
kubectl delete namespace training
echo "the leases are settled and gone"
