/**
 * How pods on virtual nodes come to stand behind Services of the consumer's cluster.
 *
 * A carried pod has no address here, so Kubernetes makes no endpoint for it. We make an EndpointSlice for each pod and
 * Service, with the operator's own address, and a port of the operator's for each port of the pod: what connects there is
 * carried through the provider's gateway. Conditions mean what Kubernetes means by them, so kube-proxy, ingress controllers
 * and meshes drain and skip these endpoints like any other.
 *
 * Refused in words: what an address alone would have to say. The operator's address is the same for all pods, so neither a
 * headless Service nor a pod's own DNS name can point at one of them.
 */
import { annotations, labels, managedBy, sliceManager } from '../../api/labels.ts';
import { endpointSliceName } from './names.ts';
import { isOfDaemonSet, isTerminal, type Pod } from './pod.ts';
import { type EndpointSlice, type Family, isTcp, type Service, selects, targetOf } from './service.ts';

export interface ExposedPort {
  /** Of the Service's port. */
  readonly name: string;
  readonly appProtocol?: string;
  /** In the pod. */
  readonly target: number;
}

export interface Exposed {
  readonly service: Service;
  readonly ports: readonly ExposedPort[];
}

export interface NotExposed {
  readonly about: 'Service' | 'Pod';
  readonly service?: Service;
  readonly reason: 'HeadlessNotServed' | 'ProtocolNotServed' | 'AddressFamilyNotServed' | 'PodNameNotServed';
  readonly message: string;
}

export interface Exposure {
  readonly served: readonly Exposed[];
  /** Ports of the pod that something connects to, each once. */
  readonly targets: readonly number[];
  readonly refused: readonly NotExposed[];
}

export const nothingExposed: Exposure = { served: [], targets: [], refused: [] };

const instead =
  'set spec.node.podIP: Provider on the lease, if the pods of its provider can be reached from this cluster by their own addresses';

/** What stands behind Services of one pod; `services` are those of its namespace, `family` is of the operator's address. */
export function exposureOf(pod: Pod, services: readonly Service[], family: Family): Exposure {
  // Not sent to the provider, or at its end: nobody is there to connect to.
  if (isTerminal(pod) || isOfDaemonSet(pod) || pod.status?.startTime === undefined) return nothingExposed;
  const served: Exposed[] = [];
  const refused: NotExposed[] = [];
  for (const service of services) {
    if (service.spec.type === 'ExternalName' || !selects(service, pod)) continue;
    const no = (reason: NotExposed['reason'], message: string) =>
      refused.push({ about: 'Service', service, reason, message });
    if (service.spec.clusterIP === 'None') {
      no(
        'HeadlessNotServed',
        `Pods on leased nodes have no address in this cluster, so a headless Service cannot name them: leave spec.clusterIP out, or ${instead}.`,
      );
      // Only a headless Service of that name would have given the pod a name of its own.
      if (pod.spec.subdomain === service.metadata.name)
        refused.push({
          about: 'Pod',
          reason: 'PodNameNotServed',
          message: `The pod has no address in this cluster, so its own DNS name under ${service.metadata.name} does not resolve: give it a Service of its own (in a StatefulSet: selector statefulset.kubernetes.io/pod-name), or ${instead}.`,
        });
      continue;
    }
    const families = service.spec.ipFamilies ?? [];
    if (families.length > 0 && !families.includes(family)) {
      no(
        'AddressFamilyNotServed',
        `Pods on leased nodes are reached at an ${family} address, and the Service has ${families.join(', ')} only: set spec.ipFamilyPolicy: PreferDualStack, or give the operator an address of that family (--node-address).`,
      );
      continue;
    }
    const others = (service.spec.ports ?? []).filter((port) => !isTcp(port));
    if (others.length > 0)
      no(
        'ProtocolNotServed',
        `Pods on leased nodes are reached by TCP only; not served: ${others.map((port) => `${port.protocol} ${port.port}`).join(', ')}. To use them, ${instead}.`,
      );
    const ports = (service.spec.ports ?? []).filter(isTcp).flatMap((port): ExposedPort[] => {
      const target = targetOf(pod, port);
      return target === undefined
        ? []
        : [
            {
              name: port.name ?? '',
              target,
              ...(port.appProtocol === undefined ? {} : { appProtocol: port.appProtocol }),
            },
          ];
    });
    if (ports.length > 0) served.push({ service, ports });
  }
  const targets = [...new Set(served.flatMap(({ ports }) => ports.map(({ target }) => target)))];
  return { served, targets, refused };
}

export interface SlicePlace {
  /** The operator's. */
  readonly address: string;
  readonly family: Family;
  /** The provider answers: what the pod's condition says is still so. */
  readonly linked: boolean;
  /** Where the operator listens for this port of the pod. */
  readonly portOf: (target: number) => number | undefined;
}

/** The slice of one pod and one Service. Undefined while there is no port to show. */
export function sliceOf(pod: Pod, exposed: Exposed, place: SlicePlace): EndpointSlice | undefined {
  const { service } = exposed;
  const ports = exposed.ports.flatMap(({ name, appProtocol, target }) => {
    const port = place.portOf(target);
    return port === undefined ? [] : [{ port, target, name, appProtocol }];
  });
  if (ports.length === 0) return undefined;
  const { name, namespace, uid = '' } = pod.metadata;
  const terminating = pod.metadata.deletionTimestamp !== undefined;
  const serving = place.linked && isReady(pod);
  return {
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: {
      name: endpointSliceName(service.metadata.name, service.metadata.uid ?? '', uid, place.family),
      namespace,
      labels: {
        [labels.serviceName]: service.metadata.name,
        // By this word Kubernetes' own controllers know that the slice is none of theirs.
        [labels.sliceManagedBy]: sliceManager,
        [labels.managedBy]: managedBy,
      },
      annotations: { [annotations.podPorts]: ports.map(({ port, target }) => `${port}=${target}`).join(',') },
      // The pod's, not the Service's: it may go while no operator runs, and nobody else would take an address of ours away.
      ownerReferences: [{ apiVersion: 'v1', kind: 'Pod', name, uid }],
    },
    addressType: place.family,
    endpoints: [
      {
        addresses: [place.address],
        conditions: {
          // Whoever publishes what is not ready means all of it.
          ready: service.spec.publishNotReadyAddresses === true || (serving && !terminating),
          serving,
          terminating,
        },
        ...(pod.spec.nodeName === undefined ? {} : { nodeName: pod.spec.nodeName }),
        targetRef: { kind: 'Pod', namespace, name, uid },
      },
    ],
    ports: ports.map(({ name: portName, port, appProtocol }) => ({
      name: portName,
      protocol: 'TCP',
      port,
      ...(appProtocol === undefined ? {} : { appProtocol }),
    })),
  };
}

const isReady = (pod: Pod): boolean => pod.status?.conditions?.find((one) => one.type === 'Ready')?.status === 'True';

/** What an earlier run listened on, by port of the pod. */
export function recordedPorts(slice: EndpointSlice): ReadonlyMap<number, number> {
  const ports = new Map<number, number>();
  for (const pair of (slice.metadata.annotations?.[annotations.podPorts] ?? '').split(',').slice(0, 256)) {
    const [, port, target] = /^(\d{1,5})=(\d{1,5})$/.exec(pair) ?? [];
    if (port !== undefined && target !== undefined && Number(port) <= 65_535) ports.set(Number(target), Number(port));
  }
  return ports;
}

/** The pod that a slice of ours was made for. */
export function podOfSlice(slice: EndpointSlice): { namespace: string; name: string; uid: string } | undefined {
  const ref = slice.endpoints?.[0]?.targetRef;
  const { namespace } = slice.metadata;
  return ref?.kind === 'Pod' && ref.name && namespace ? { namespace, name: ref.name, uid: ref.uid ?? '' } : undefined;
}

/** All that is ours of a slice, to tell whether a stored one is as it should be. */
export function contentOf(slice: EndpointSlice): unknown {
  const { labels: all = {}, annotations: notes = {}, ownerReferences = [] } = slice.metadata;
  return {
    labels: [labels.serviceName, labels.sliceManagedBy, labels.managedBy].map((key) => all[key]),
    ports: notes[annotations.podPorts],
    owners: ownerReferences.map(({ kind, name, uid }) => ({ kind, name, uid })),
    addressType: slice.addressType,
    endpoints: slice.endpoints,
    // As the API server stores them: no name is an empty one.
    slicePorts: (slice.ports ?? []).map(({ name, protocol, port, appProtocol }) => [
      name ?? '',
      protocol ?? 'TCP',
      port,
      appProtocol ?? null,
    ]),
  };
}
