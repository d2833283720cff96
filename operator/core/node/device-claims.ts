/**
 * Dynamic resource allocation on a leased node, as an option of the lease (`spec.node.gpusAs: Devices`).
 *
 * The node shows a ResourceSlice with one device a leased GPU. The consumer's scheduler allocates devices to claims; the
 * provider knows nothing of them, and is asked for as many GPUs as a container was allocated. Which ones they are there is
 * its own business: all GPUs of a lease are alike.
 *
 * What cannot be said with a count is refused: a GPU that two containers or two pods share, administrative access, and
 * devices of other drivers.
 * https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/
 */
import { deviceDriver, gpuResource } from '../../api/labels.ts';
import type { Container, Pod } from './pod.ts';
import type { ServedNode } from './virtual-node.ts';

/** As much of a resource.k8s.io/v1 ResourceClaim as is looked at. */
export interface ResourceClaim {
  metadata: { name: string; namespace?: string; uid?: string };
  status?: {
    allocation?: {
      devices?: {
        results?: { request: string; driver: string; pool: string; device: string; adminAccess?: boolean }[];
      };
    };
    reservedFor?: { resource: string; name: string; uid: string }[];
  };
}

export interface ResourceSlice {
  apiVersion?: string;
  kind?: string;
  metadata: {
    name: string;
    uid?: string;
    resourceVersion?: string;
    labels?: Record<string, string>;
    ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string; controller?: boolean }[];
  };
  spec: {
    driver: string;
    nodeName: string;
    pool: { name: string; generation: number; resourceSliceCount: number };
    devices: Device[];
  };
}

export interface Device {
  name: string;
  attributes: Record<string, { string: string } | { version: string }>;
  capacity?: Record<string, { value: string }>;
}

interface PodClaim {
  name: string;
  resourceClaimName?: string;
  resourceClaimTemplateName?: string;
}

const claimsOf = (pod: Pod): PodClaim[] => (pod.spec.resourceClaims as PodClaim[] | undefined) ?? [];
const askedBy = (container: Container) =>
  (container.resources?.claims as { name: string; request?: string }[] | undefined) ?? [];

/** The object of each claim, by the pod's own name for it; undefined where it was not made yet. */
export function claimNames(pod: Pod): ReadonlyMap<string, string | undefined> {
  const { resourceClaimStatuses: made = [] } = (pod.status ?? {}) as {
    resourceClaimStatuses?: { name: string; resourceClaimName?: string }[];
  };
  return new Map(
    claimsOf(pod).map(({ name, resourceClaimName }) => [
      name,
      resourceClaimName ?? made.find((one) => one.name === name)?.resourceClaimName,
    ]),
  );
}

export type Claimed =
  | { readonly pod: Pod }
  | { readonly waits: string }
  | { readonly refused: 'FieldNotSupported'; readonly message: string };

/** The pod with counts of GPUs instead of claims. `claims`: by the pod's own names. */
export function countClaims(pod: Pod, claims: ReadonlyMap<string, ResourceClaim>, nodeName: string): Claimed {
  if (claimsOf(pod).length === 0) return { pod };
  const refuse = (path: string, message: string): Claimed => ({
    refused: 'FieldNotSupported',
    message: `${path}: ${message}`,
  });
  for (const [i, { name }] of claimsOf(pod).entries()) {
    const claim = claims.get(name);
    const path = `spec.resourceClaims[${i}]`;
    const results = claim?.status?.allocation?.devices?.results;
    if (!claim || !results) return { waits: `The claim of ${path} (${name}) is not allocated yet.` };
    const foreign = results.find(({ driver, pool }) => driver !== deviceDriver || pool !== nodeName);
    if (foreign)
      return refuse(
        path,
        `a device of driver ${foreign.driver} is not here: leased nodes have those of ${deviceDriver}`,
      );
    if (results.some(({ adminAccess }) => adminAccess === true))
      return refuse(path, 'leased nodes give no administrative access to GPUs');
    const [first] = claim.status?.reservedFor ?? [];
    if (first && first.uid !== pod.metadata.uid)
      return refuse(
        path,
        `claim ${claim.metadata.name} is in use by ${first.name}: on leased nodes no pods share a GPU`,
      );
  }

  const devicesOf = (container: Container): Set<string> => {
    const devices = new Set<string>();
    // A request of alternatives is allocated as `request/alternative`.
    for (const { name, request } of askedBy(container))
      for (const result of claims.get(name)?.status?.allocation?.devices?.results ?? [])
        if (request === undefined || result.request.split('/')[0] === request) devices.add(result.device);
    return devices;
  };
  const holders = new Map<string, string>();
  const together = [
    ...pod.spec.containers,
    ...(pod.spec.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === 'Always'),
  ];
  for (const container of together)
    for (const device of devicesOf(container)) {
      const holder = holders.get(device);
      if (holder !== undefined)
        return refuse(
          'spec.resourceClaims',
          `containers ${holder} and ${container.name} share a GPU: on leased nodes each GPU is one container's`,
        );
      holders.set(device, container.name);
    }
  return { pod: withCounts(pod, (container) => devicesOf(container).size) };
}

/** For what does not depend on how many GPUs a pod has. */
export const withoutClaims = (pod: Pod): Pod => (claimsOf(pod).length === 0 ? pod : withCounts(pod, () => 0));

function withCounts(pod: Pod, count: (container: Container) => number): Pod {
  const counted = (container: Container): Container => {
    if (askedBy(container).length === 0) return container;
    const { claims: _, ...resources } = container.resources ?? {};
    const gpus = count(container);
    const limits = gpus === 0 ? resources.limits : { ...resources.limits, [gpuResource]: String(gpus) };
    return { ...container, resources: { ...resources, ...(limits && { limits }) } };
  };
  const { resourceClaims: _, ...spec } = pod.spec;
  return {
    ...pod,
    spec: {
      ...spec,
      containers: spec.containers.map(counted),
      ...(spec.initContainers && { initContainers: spec.initContainers.map(counted) }),
    },
  };
}

/** One device a leased GPU, with what feature discovery says of them, under the names that NVIDIA's own driver uses. */
export function resourceSlice(
  node: { readonly name: string; readonly uid: string; readonly labels: Readonly<Record<string, string>> },
  served: ServedNode,
  generation: number,
): ResourceSlice {
  const label = (name: string) => served.nodeLabels[`nvidia.com/${name}`];
  const attributes: Device['attributes'] = { type: { string: 'gpu' } };
  const say = (name: string, value: string | undefined) => {
    if (value !== undefined && value !== '' && value.length <= 64) attributes[name] = { string: value };
  };
  const sayVersion = (name: string, parts: readonly (string | undefined)[]) => {
    const numbers = parts.map((part) => part ?? '0');
    if (parts[0] !== undefined && numbers.every((part) => /^\d{1,9}$/.test(part)))
      attributes[name] = { version: numbers.map(Number).join('.') };
  };
  say('productName', label('gpu.product'));
  say('architecture', label('gpu.family'));
  sayVersion('cudaComputeCapability', [label('gpu.compute.major'), label('gpu.compute.minor'), '0']);
  sayVersion('driverVersion', [
    label('cuda.driver-version.major'),
    label('cuda.driver-version.minor'),
    label('cuda.driver-version.revision'),
  ]);
  const memory = label('gpu.memory');
  const capacity =
    memory !== undefined && /^\d{1,9}$/.test(memory) ? { memory: { value: `${Number(memory)}Mi` } } : undefined;
  return {
    apiVersion: 'resource.k8s.io/v1',
    kind: 'ResourceSlice',
    metadata: {
      name: node.name,
      labels: { ...node.labels },
      // Goes with its node.
      ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: node.name, uid: node.uid, controller: true }],
    },
    spec: {
      driver: deviceDriver,
      nodeName: node.name,
      pool: { name: node.name, generation, resourceSliceCount: 1 },
      devices: Array.from({ length: Math.min(served.gpus, mostDevices) }, (_, i) => ({
        name: `gpu-${i}`,
        attributes,
        ...(capacity && { capacity }),
      })),
    },
  };
}

/** Of one slice, by the API. */
const mostDevices = 128;
