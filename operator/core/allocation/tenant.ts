/**
 * The tenant of one lease, as objects of the provider's cluster. Applied as a whole: a try that broke off is made whole by
 * the next.
 *
 * Isolation is layered, so that no single mistake opens it: the narrow proxy, pod admission at the gateway, the role of
 * the tenant's account, quota, pod security "baseline", the policy of tenants' pods and the network policy.
 */
import type { TenantProfile } from '../../api/gateway.ts';
import { annotations, gpuResource, managedBy, labels as ownLabels } from '../../api/labels.ts';
import type { Hex32 } from '../../api/messages.ts';
import type { PodSecurityLevel } from './pod-rules.ts';
import { tenantNamespace } from './record.ts';
import { listenerInTenantRoleName, tenantAccount, tenantLimits, tenantRoleName } from './rights.ts';
import { bytesText, cpuText, type Room } from './room.ts';

export const leaseIdLabel = (leaseId: Hex32): string => leaseId.slice(2, 65).toLowerCase();

/** Networks that a tenant's pods cannot reach: private, carrier, link-local (cloud metadata), multicast. */
export const privateV4 = [
  '10.0.0.0/8',
  '100.64.0.0/10',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.168.0.0/16',
  '224.0.0.0/4',
  '240.0.0.0/4',
];
const privateV6 = ['fc00::/7', 'fe80::/10', 'ff00::/8'];

/** DNS caches on nodes listen on a link-local address. https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/ */
const nodeLocalDns = '169.254.20.10/32';

export interface TenantOptions {
  /** Level of Pod Security of the namespaces. Default: baseline. */
  readonly podSecurity?: PodSecurityLevel;
  /** Further networks to keep tenants out of: public addresses of nodes, of the API server, of the provider's services. */
  readonly deniedCidrs: readonly string[];
  /** Where the gateway runs. It connects to tenants' pods, and they to its tunnels. Absent: they do not. */
  readonly gateway?: GatewayPlace;
  /** Account of a gateway that is not the process which makes tenants: let into each of them, and nowhere else. */
  readonly gatewayAccount?: { readonly namespace: string; readonly name: string };
}

/** The gateway's pods by where they run, its hosts by address: whichever the network policy can see. */
export interface GatewayPlace {
  readonly namespace: string;
  readonly podLabels?: Readonly<Record<string, string>>;
  readonly cidrs?: readonly string[];
}

/** What a tenant may store beyond the life of its pods. */
export interface TenantStorage {
  /** The provider's StorageClass. */
  readonly className: string;
  /** All claims together. */
  readonly bytes: number;
}

/** A claim of a byte is a volume, too, and volumes are what storage systems count. */
export const maxClaims = 100;

/** One object to apply, with the name of its kind in the engine's table of resources. */
export interface TenantObject {
  readonly resource:
    | 'namespaces'
    | 'serviceAccounts'
    | 'roleBindings'
    | 'resourceQuotas'
    | 'limitRanges'
    | 'networkPolicies';
  readonly object: {
    readonly apiVersion: string;
    readonly kind: string;
    readonly metadata: {
      readonly name: string;
      readonly namespace?: string;
      readonly labels?: Record<string, string>;
      readonly annotations?: Record<string, string>;
    };
    readonly [field: string]: unknown;
  };
}

/** The lease that a tenant is made for. */
export interface TenantLease {
  readonly leaseId: Hex32;
  readonly chainId: number;
  /** Address of the contract. */
  readonly escrow: string;
  readonly room: Room;
  /** The one node on which its pods may run. */
  readonly nodeName: string;
  /** What that node calls the devices of the lease. Absent: nvidia.com/gpu. */
  readonly device?: string;
  /** Absent: baseline. */
  readonly tenantProfile?: TenantProfile;
  /** Absent: none. */
  readonly storage?: TenantStorage;
}

/** Where a tenant's money is, from the annotation of its namespace; undefined when it does not tell. */
export function escrowOfTenant(
  noted: Readonly<Record<string, string>> | undefined,
): Pick<TenantLease, 'chainId' | 'escrow' | 'leaseId'> | undefined {
  const match = /^(\d{1,15})\/(0x[0-9a-fA-F]{40})\/(0x[0-9a-f]{64})$/.exec(noted?.[annotations.escrow] ?? '');
  return match ? { chainId: Number(match[1]), escrow: match[2]!, leaseId: match[3] as Hex32 } : undefined;
}

/**
 * @param tunnelPorts Ports at the gateway that are of this tenant alone: its ways to the consumer's Services that the lease names.
 */
export function tenantObjects(
  lease: TenantLease,
  options: TenantOptions,
  tunnelPorts: readonly number[] = [],
): readonly TenantObject[] {
  const { leaseId, room } = lease;
  const namespace = tenantNamespace(leaseId);
  const labels = {
    [ownLabels.managedBy]: managedBy,
    [ownLabels.tenant]: 'true',
    [ownLabels.leaseId]: leaseIdLabel(leaseId),
  };
  const inside = (name: string) => ({ name, namespace, labels });
  const denied = options.deniedCidrs;
  const gateway = peersOf(options.gateway);
  const dns = [
    { protocol: 'UDP', port: 53 },
    { protocol: 'TCP', port: 53 },
  ];
  return [
    {
      resource: 'namespaces',
      object: {
        apiVersion: 'v1',
        kind: 'Namespace',
        metadata: {
          name: namespace,
          labels: {
            ...labels,
            // There is no level between: what a trusted tenant may ask for, the gateway and the policy of tenants decide.
            'pod-security.kubernetes.io/enforce':
              lease.tenantProfile === 'trusted' ? 'privileged' : (options.podSecurity ?? 'baseline'),
            'pod-security.kubernetes.io/enforce-version': 'latest',
          },
          annotations: {
            [annotations.escrow]: `${lease.chainId}/${lease.escrow}/${leaseId.toLowerCase()}`,
            [annotations.tenantNode]: lease.nodeName,
            [annotations.tenantDevice]: lease.device ?? gpuResource,
          },
        },
      },
    },
    {
      resource: 'serviceAccounts',
      object: {
        apiVersion: 'v1',
        kind: 'ServiceAccount',
        metadata: inside('default'),
        automountServiceAccountToken: false,
      },
    },
    {
      resource: 'serviceAccounts',
      object: {
        apiVersion: 'v1',
        kind: 'ServiceAccount',
        metadata: inside(tenantAccount),
        automountServiceAccountToken: false,
      },
    },
    {
      resource: 'roleBindings',
      object: {
        apiVersion: 'rbac.authorization.k8s.io/v1',
        kind: 'RoleBinding',
        metadata: inside(tenantAccount),
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: tenantRoleName },
        subjects: [{ kind: 'ServiceAccount', name: tenantAccount, namespace }],
      },
    },
    ...(options.gatewayAccount === undefined
      ? []
      : [
          {
            resource: 'roleBindings' as const,
            object: {
              apiVersion: 'rbac.authorization.k8s.io/v1',
              kind: 'RoleBinding',
              metadata: inside(listenerInTenantRoleName),
              roleRef: {
                apiGroup: 'rbac.authorization.k8s.io',
                kind: 'ClusterRole',
                name: listenerInTenantRoleName,
              },
              subjects: [{ kind: 'ServiceAccount', ...options.gatewayAccount }],
            },
          },
        ]),
    // Two of them. What was paid for is not the gateway's to raise, which keeps the Services; and Kubernetes counts a whole
    // quota anew for each pod that goes.
    {
      resource: 'resourceQuotas',
      object: {
        apiVersion: 'v1',
        kind: 'ResourceQuota',
        metadata: inside('bought'),
        spec: {
          hard: {
            [`requests.${lease.device ?? gpuResource}`]: String(room.gpus),
            'requests.cpu': cpuText(room.cpuMillis),
            'requests.memory': bytesText(room.memoryBytes),
            'requests.ephemeral-storage': bytesText(room.ephemeralBytes),
            pods: String(room.pods),
            persistentvolumeclaims: String(lease.storage === undefined ? 0 : maxClaims),
            'requests.storage': bytesText(lease.storage?.bytes ?? 0),
          },
        },
      },
    },
    {
      resource: 'resourceQuotas',
      object: {
        apiVersion: 'v1',
        kind: 'ResourceQuota',
        metadata: inside(tenantLimits),
        spec: {
          hard: {
            // The gateway allows as many as the lease names.
            services: '0',
            'services.loadbalancers': '0',
            'services.nodeports': '0',
            'count/configmaps': '1000',
            'count/secrets': '1000',
          },
        },
      },
    },
    {
      resource: 'limitRanges',
      object: {
        apiVersion: 'v1',
        kind: 'LimitRange',
        metadata: inside('lease'),
        spec: {
          limits: [
            {
              type: 'Container',
              // The gateway spells these out, and caps them; they stand here for whoever creates a pod past it.
              defaultRequest: { cpu: '0', memory: '0', 'ephemeral-storage': '0' },
              default: {
                cpu: cpuText(room.cpuMillis),
                memory: bytesText(room.memoryBytes),
                'ephemeral-storage': bytesText(room.ephemeralBytes),
              },
              max: {
                cpu: cpuText(room.cpuMillis),
                memory: bytesText(room.memoryBytes),
                'ephemeral-storage': bytesText(room.ephemeralBytes),
              },
            },
          ],
        },
      },
    },
    {
      resource: 'networkPolicies',
      object: {
        apiVersion: 'networking.k8s.io/v1',
        kind: 'NetworkPolicy',
        metadata: inside('lease'),
        spec: {
          podSelector: {},
          policyTypes: ['Ingress', 'Egress'],
          ingress: [
            { from: [{ podSelector: {} }] },
            ...(gateway.length > 0 ? [{ from: gateway, ports: [{ protocol: 'TCP' }] }] : []),
          ],
          egress: [
            { to: [{ podSelector: {} }] },
            // By port, for the ports beside them are other tenants' Services. The gateway looks who calls as well.
            ...(gateway.length > 0 && tunnelPorts.length > 0
              ? [{ to: gateway, ports: tunnelPorts.map((port) => ({ protocol: 'TCP', port })) }]
              : []),
            {
              to: [
                {
                  namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'kube-system' } },
                  podSelector: { matchLabels: { 'k8s-app': 'kube-dns' } },
                },
                { ipBlock: { cidr: nodeLocalDns } },
              ],
              ports: dns,
            },
            {
              to: [
                {
                  ipBlock: {
                    cidr: '0.0.0.0/0',
                    except: [...privateV4, ...denied.filter((cidr) => !cidr.includes(':'))],
                  },
                },
                { ipBlock: { cidr: '::/0', except: [...privateV6, ...denied.filter((cidr) => cidr.includes(':'))] } },
              ],
            },
          ],
        },
      },
    },
  ];
}

function peersOf(gateway: GatewayPlace | undefined): readonly object[] {
  if (!gateway) return [];
  return [
    {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': gateway.namespace } },
      podSelector: gateway.podLabels ? { matchLabels: { ...gateway.podLabels } } : {},
    },
    ...(gateway.cidrs ?? []).map((cidr) => ({ ipBlock: { cidr } })),
  ];
}
