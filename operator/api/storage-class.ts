/**
 * The StorageClass by which claims ask for storage at the provider of a leased node, and the driver that stands for it. There is
 * no driver on any node: the virtual node makes the volume, and the provider's kubelet mounts it.
 */
import { group, labels, managedBy, storageClassName } from './labels.ts';

/** What a claim is told, by reason; and what may be done about it. */
export const claimReasons = {
  ProvisioningSucceeded: 'the claim has a volume at the provider of a lease, for as long as that lease lasts',
  ProvisioningFailed:
    'not there, and why: no storage offered, a namespace that may not use the lease, no room; the scheduler chooses again',
  ProviderUnreachable: 'the provider was asked, and has not answered; it is asked again',
  DeletionWaits: 'the claim is deleted here when the provider has deleted what it stores, or its lease has ended',
  LeaseEndsSoon: 'what the claim stores is lost at the time that is named: copy it away',
  LeaseEnding: 'as before, and the lease ends now',
  DataGone: 'what was stored is lost; the condition `DataLost` says so for as long as the claim is there',
  DataFound: 'the provider has it after all',
} as const;
export type ClaimReason = keyof typeof claimReasons;

const ours = { [labels.managedBy]: managedBy };

export const storageClass = {
  apiVersion: 'storage.k8s.io/v1',
  kind: 'StorageClass',
  metadata: { name: storageClassName, labels: ours },
  provisioner: group,
  // Which provider stores it follows from where its first pod is to run. Nor can the volume go elsewhere later.
  volumeBindingMode: 'WaitForFirstConsumer',
  reclaimPolicy: 'Delete',
  allowVolumeExpansion: false,
  // Without it the scheduler would send a pod that tolerates every node to one where nobody makes the volume.
  allowedTopologies: [{ matchLabelExpressions: [{ key: labels.managedBy, values: [managedBy] }] }],
};

export const csiDriver = {
  apiVersion: 'storage.k8s.io/v1',
  kind: 'CSIDriver',
  metadata: { name: group, labels: ours },
  // Nothing is attached to a virtual node: Kubernetes would wait for somebody to say that it was.
  spec: { attachRequired: false, podInfoOnMount: false, volumeLifecycleModes: ['Persistent'] },
};
