/**
 * Services of the consumer's cluster that a lease names, so that its pods may reach them: which of them, on which ports, under
 * which names, and where a connection goes.
 *
 * Invariant: the gateway asks, this side decides. A connection is let through when the lease names the Service now, the
 * Service's namespace agrees, and the port is one that it has; whatever the gateway was told before.
 */
import type { ServicesRequest } from '../../api/gateway.ts';
import { annotations } from '../../api/labels.ts';
import type { NamedService } from '../../api/lease.ts';
import type { Pod } from './pod.ts';
import { type EndpointSlice, isTcp, type Service, type ServicePort } from './service.ts';

export interface ServiceKey {
  readonly namespace: string;
  readonly name: string;
}

/** Why a Service is not what its lease hopes for. Told on the lease. */
export interface ServiceNote {
  readonly reason: 'ServiceNotFound' | 'ServiceNotShared' | 'ServiceNotSupported' | 'ServicePortNotFound';
  readonly message: string;
}

export interface Named {
  readonly key: ServiceKey;
  /** Not there yet, or no longer: its name is kept, and nothing connects. */
  readonly service?: Service;
  readonly ports: readonly ServicePort[];
}

export interface NamedServices {
  readonly named: readonly Named[];
  readonly notes: readonly ServiceNote[];
}

/** The gateway takes no more of one Service. */
const mostPorts = 16;

export function namedServices(
  wanted: readonly NamedService[],
  leaseNamespace: string,
  serviceOf: (key: ServiceKey) => Service | undefined,
): NamedServices {
  const named: Named[] = [];
  const notes: ServiceNote[] = [];
  const seen = new Set<string>();
  for (const { name, namespace = leaseNamespace, ports: listed } of wanted) {
    const key = { namespace, name };
    const text = `${namespace}/${name}`;
    // Once by its bare name and once with the lease's namespace: the same Service.
    if (seen.has(text)) continue;
    seen.add(text);
    const no = (reason: ServiceNote['reason'], message: string) => notes.push({ reason, message });
    const service = serviceOf(key);
    if (!service) {
      no('ServiceNotFound', `Service ${text} is not there: pods know its name, and cannot connect before it is made.`);
      // Of another namespace nobody has agreed yet.
      if (namespace === leaseNamespace) named.push({ key, ports: [] });
      continue;
    }
    if (namespace !== leaseNamespace && !agrees(service, leaseNamespace)) {
      no(
        'ServiceNotShared',
        `Service ${text} is of another namespace and not shared with this one: whoever owns it may annotate it with ${annotations.leaseNamespaces}: ${leaseNamespace}.`,
      );
      continue;
    }
    if (service.spec.type === 'ExternalName') {
      no(
        'ServiceNotSupported',
        `Service ${text} is of type ExternalName, only another name for a host outside: pods reach that host by its own name.`,
      );
      continue;
    }
    const tcp = (service.spec.ports ?? []).filter(isTcp);
    const missing = listed?.filter((port) => !tcp.some((one) => one.port === port)) ?? [];
    if (missing.length > 0)
      no('ServicePortNotFound', `Service ${text} has no TCP port ${missing.join(', ')}; it has ${portsText(tcp)}.`);
    const others = (service.spec.ports ?? []).filter((port) => !isTcp(port));
    if (!listed && others.length > 0)
      no(
        'ServiceNotSupported',
        `Of Service ${text} pods reach TCP ports only, not ${others.map((port) => `${port.protocol} ${port.port}`).join(', ')}.`,
      );
    const chosen = listed ? tcp.filter(({ port }) => listed.includes(port)) : tcp;
    if (chosen.length > mostPorts)
      no(
        'ServiceNotSupported',
        `Service ${text} has ${chosen.length} TCP ports, pods reach the first ${mostPorts}: list others in spec.services[].ports.`,
      );
    named.push({ key, service, ports: chosen.slice(0, mostPorts) });
  }
  return { named, notes };
}

const portsText = (ports: readonly ServicePort[]): string =>
  ports.length === 0 ? 'none' : ports.map(({ port }) => port).join(', ');

function agrees(service: Service, leaseNamespace: string): boolean {
  const allowed = (service.metadata.annotations?.[annotations.leaseNamespaces] ?? '')
    .split(',')
    .map((one) => one.trim());
  return allowed.includes('*') || allowed.includes(leaseNamespace);
}

/** What the gateway is told of them. */
export function servicesRequest(named: readonly Named[]): ServicesRequest {
  return {
    services: named.map(({ key, ports }) => ({
      ...key,
      ports: ports.map(({ name, port }) => ({ ...(name ? { name } : {}), port })),
    })),
  };
}

/** NAME.NAMESPACE:PORT, as a stream of the reverse tunnel asks for it. */
export function parseAuthority(authority: unknown): (ServiceKey & { readonly port: number }) | undefined {
  const match =
    typeof authority === 'string' && authority.length <= 133
      ? /^([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)\.([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?):([1-9][0-9]{0,4})$/.exec(
          authority,
        )
      : null;
  if (!match || Number(match[3]) > 65_535) return undefined;
  return { name: match[1]!, namespace: match[2]!, port: Number(match[3]) };
}

export interface DialTarget {
  readonly address: string;
  readonly port: number;
}

/**
 * Where a connection to this port may go: endpoints that are ready, and while there is none, those that still serve though
 * they are ending, as kube-proxy has it.
 */
export function dialTargets(slices: readonly EndpointSlice[], port: ServicePort): readonly DialTarget[] {
  const ready: DialTarget[] = [];
  const ending: DialTarget[] = [];
  for (const slice of slices) {
    if (slice.addressType !== 'IPv4' && slice.addressType !== 'IPv6') continue;
    const there = (slice.ports ?? []).find((one) => (one.name ?? '') === (port.name ?? '') && isTcp(one))?.port;
    if (typeof there !== 'number') continue;
    for (const { addresses, conditions } of slice.endpoints ?? []) {
      const [address] = addresses;
      if (address === undefined || !isDialable(address)) continue;
      if (conditions?.ready !== false) ready.push({ address, port: there });
      else if (conditions.serving === true && conditions.terminating === true) ending.push({ address, port: there });
    }
  }
  return ready.length > 0 ? ready : ending;
}

/** The API server takes no such endpoint; if one came from elsewhere, it would be this process that is reached. */
const isDialable = (address: string): boolean =>
  !/^(0\.|127\.|169\.254\.|22[4-9]\.|23\d\.)/.test(address) && !/^(::1?$|::ffff:|fe[89ab]|ff)/i.test(address);

export interface HostAlias {
  readonly ip: string;
  readonly hostnames: string[];
}

/**
 * What a pod's hosts file says of the Services that it may reach. A bare name is of the pod's own namespace, as in its
 * DNS search list.
 */
export function hostAliasesFor(
  podNamespace: string,
  reached: readonly (ServiceKey & { readonly address: string })[],
  clusterDomain: string,
): HostAlias[] {
  return reached.map(({ namespace, name, address }) => {
    const full = `${name}.${namespace}`;
    return {
      ip: address,
      hostnames: [...(namespace === podNamespace ? [name] : []), full, `${full}.svc`, `${full}.svc.${clusterDomain}`],
    };
  });
}

/** The translated pod with these names in it. What the consumer wrote there comes first, and is found first. */
export function withHostAliases(pod: Pod, aliases: readonly HostAlias[]): Pod {
  if (aliases.length === 0) return pod;
  const own = (Array.isArray(pod.spec.hostAliases) ? pod.spec.hostAliases : []) as HostAlias[];
  const taken = new Set(own.flatMap(({ hostnames }) => hostnames ?? []));
  const added = aliases
    .map(({ ip, hostnames }) => ({ ip, hostnames: hostnames.filter((name) => !taken.has(name)) }))
    .filter(({ hostnames }) => hostnames.length > 0);
  return { ...pod, spec: { ...pod.spec, hostAliases: [...own, ...added] } };
}
