/** The DeviceClass by which ResourceClaims ask for GPUs of leased nodes, where a lease shows them as devices. */
import { deviceDriver, labels, managedBy } from './labels.ts';

export const deviceClass = {
  apiVersion: 'resource.k8s.io/v1',
  kind: 'DeviceClass',
  metadata: { name: deviceDriver, labels: { [labels.managedBy]: managedBy } },
  // No extendedResourceName: a class of NVIDIA's driver may claim nvidia.com/gpu, and the cluster knows one class for it.
  spec: { selectors: [{ cel: { expression: `device.driver == '${deviceDriver}'` } }] },
};
