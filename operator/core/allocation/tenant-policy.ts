/**
 * The admission of pods once more, by the provider's API server itself: what pods of tenants may not have is refused there,
 * whoever creates them and whatever the gateway let through. It is made of the same data as the gateway's admission and
 * stands behind it: it says less to authors, asks less of what Pod Security asks already, and fails closed.
 *
 * What differs from tenant to tenant (node, devices, trust) stands on its namespace, which no tenant can write.
 *
 * Cost. A policy may cost 10,000,000 units a request and an expression 1,000,000, so each looks at a list once. The largest
 * pods that the API server stores come near that with their variables alone; such a one is refused, not let through.
 * https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/
 */
import { annotations, gpuResource, managedBy, labels as ownLabels } from '../../api/labels.ts';
import { baselineCapabilities } from '../pod-security.ts';
import { secretTypes } from './admit-config.ts';
import { admittedVolumes, projectedSources } from './admit-pod.ts';
import { deviceVariables, harmlessCapabilities, visibleDevices } from './gpu-variables.ts';
import { imageAllowedCel } from './images.ts';
import { toleratedTaints } from './node-view.ts';
import type { PodRules } from './pod-rules.ts';
import { tenantAccount } from './rights.ts';

export const tenantPolicyName = 'gpulease-tenant';

const text = (value: string) => `'${value}'`;
const listOf = (values: readonly string[]) => `[${values.map(text).join(', ')}]`;

const lists = ['containers', 'initContainers', 'ephemeralContainers'] as const;
/** CEL that holds for every container `c`, of whichever list. */
const everyContainer = (condition: string, of: readonly string[] = lists) =>
  of.map((list) => `object.spec.?${list}.orValue([]).all(c, ${condition})`).join(' && ');

const noted = (key: string, otherwise: string) =>
  `namespaceObject.metadata.?annotations[?${text(key)}].orValue(${text(otherwise)})`;
const isNew = `request.operation == 'CREATE'`;

const env = 'c.?env.orValue([])';
const asksForGpu = `(c.?resources.?limits[?variables.device].hasValue() && string(c.resources.limits[variables.device]) != '0')`;
const isVoid = `e.?value.orValue('') == 'void'`;
const named = `e.name == ${text(visibleDevices)}`;

interface Check {
  readonly holds: string;
  readonly otherwise: string;
  /** Does not hold for a tenant that its provider trusts with the hosts. */
  readonly untrusted?: boolean;
}

const withoutHost = (path: string) =>
  `${path}.?httpGet.?host.orValue('') == '' && ${path}.?tcpSocket.?host.orValue('') == ''`;

const imagesOf = (pod: string) =>
  `(${lists.map((list) => `${pod}.spec.?${list}.orValue([]).map(c, c.image)`).join(' + ')})`;

const nodeTerms = `object.spec.?affinity.?nodeAffinity.?requiredDuringSchedulingIgnoredDuringExecution.?nodeSelectorTerms.orValue([])`;

/** What a pod of a tenant must be like. One entry, one message. */
function checks(rules: PodRules): readonly Check[] {
  const otherVariables = deviceVariables.filter((name) => name !== visibleDevices);
  const image = imageAllowedCel('c.image', rules.images);
  const imageVolume = imageAllowedCel('v.image.reference', rules.images);
  return [
    {
      holds: `object.metadata.?labels[?${text(ownLabels.leaseId)}].orValue('') == namespaceObject.metadata.?labels[?${text(ownLabels.leaseId)}].orValue('-')`,
      otherwise: `the label ${ownLabels.leaseId} is not that of the namespace, so the pod would be counted against nobody`,
    },
    {
      holds: `object.spec.?serviceAccountName.orValue('') == 'default' && !object.spec.?automountServiceAccountToken.orValue(true)`,
      otherwise: `a pod of a tenant runs as "default", without a token: not as "${tenantAccount}", which may act in the namespace`,
    },
    {
      holds: [
        `!(${isNew}) || variables.node == '' ||`,
        `(object.spec.?nodeName.orValue('') == '' && object.spec.?nodeSelector.orValue({}).size() == 0 &&`,
        `size(${nodeTerms}) == 1 && ${nodeTerms}.all(t, size(t.?matchExpressions.orValue([])) == 0 &&`,
        `size(t.?matchFields.orValue([])) == 1 &&`,
        `t.?matchFields.orValue([]).all(f, f.key == 'metadata.name' && f.operator == 'In' && f.?values.orValue([]) == [variables.node])))`,
      ].join(' '),
      otherwise: 'a pod of a tenant is tied to the node of its lease, by its name and by nothing else',
    },
    {
      holds: `object.spec.?tolerations.orValue([]).all(t, t.?key.orValue('') in ${listOf(toleratedTaints.map(({ key }) => key))} || t.?key.orValue('').startsWith('nvidia.com/'))`,
      otherwise: 'a pod of a tenant tolerates no taints but those of its node',
    },
    {
      holds: `!object.spec.?priorityClassName.orValue('').startsWith('system-') && object.spec.?schedulerName.orValue('default-scheduler') == 'default-scheduler'`,
      otherwise: 'a pod of a tenant has no priority of the system and no scheduler of its own',
    },
    {
      holds: `!object.spec.?hostPID.orValue(false) && !object.spec.?hostIPC.orValue(false) && ${everyContainer(
        `!c.?securityContext.?privileged.orValue(false) && c.?securityContext.?capabilities.?add.orValue([]).all(k, k in ${listOf(baselineCapabilities)} || (k.startsWith('CAP_') && k.substring(4) in ${listOf(baselineCapabilities)}))`,
      )}`,
      otherwise:
        'a pod of a tenant has no processes of the host, is not privileged and adds no capability past Pod Security "baseline"',
    },
    {
      untrusted: true,
      holds: `!object.spec.?hostNetwork.orValue(false) && object.spec.?volumes.orValue([]).all(v, !has(v.hostPath))`,
      otherwise: 'a pod of a tenant has neither the network nor files of the host',
    },
    {
      holds: `object.spec.?volumes.orValue([]).all(v, ${[...admittedVolumes, 'hostPath'].map((kind) => `has(v.${kind})`).join(' || ')})`,
      otherwise: `volumes of tenants are ${admittedVolumes.join(', ')}`,
    },
    {
      holds: `object.spec.?volumes.orValue([]).all(v, v.?projected.?sources.orValue([]).all(s, ${projectedSources.map((kind) => `has(s.${kind})`).join(' || ')}))`,
      otherwise: 'tokens, trust bundles and certificates of the provider are not given to pods of tenants',
    },
    {
      holds: `object.spec.?resourceClaims.orValue([]).size() == 0 && ${everyContainer(
        [
          `c.?resources.?claims.orValue([]).size() == 0`,
          `c.?resources.?limits.orValue({}).all(k, k in ['cpu', 'memory', 'ephemeral-storage', variables.device])`,
          `c.?resources.?requests.orValue({}).all(k, k in ['cpu', 'memory', 'ephemeral-storage', variables.device])`,
        ].join(' && '),
        ['containers', 'initContainers'],
      )}`,
      otherwise: 'a pod of a tenant asks for CPU, memory, disk and the devices of its lease, and for no others',
    },
    {
      holds: everyContainer(
        `${asksForGpu} ? !${env}.exists(e, ${named}) : (${env}.exists(e, ${named}) && ${env}.all(e, !(${named}) || ${isVoid}))`,
        ['containers', 'initContainers'],
      ),
      otherwise: `${visibleDevices} is "void" in each container without a GPU, and is the device plugin's to set in each with one`,
    },
    {
      holds: everyContainer(`${env}.exists(e, ${named}) && ${env}.all(e, !(${named}) || ${isVoid})`, [
        'ephemeralContainers',
      ]),
      otherwise: `${visibleDevices} is "void" in ephemeral containers`,
    },
    {
      holds: everyContainer(
        `${env}.all(e, !(e.name in ${listOf(otherVariables)}) || (e.name == 'NVIDIA_DRIVER_CAPABILITIES' && e.?value.orValue('').split(',').all(p, p in ${listOf(harmlessCapabilities)})))`,
      ),
      otherwise: `variables that choose devices are refused: ask for the resource ${gpuResource}`,
    },
    {
      holds: everyContainer(
        `c.?envFrom.orValue([]).all(f, f.?prefix.orValue('') == '' || !${listOf(deviceVariables)}.exists(n, n.startsWith(f.prefix)))`,
      ),
      otherwise: 'a prefix of envFrom could make a variable that chooses devices',
    },
    {
      holds: everyContainer(`c.?volumeMounts.orValue([]).all(m, !m.mountPath.contains('nvidia-container-devices'))`),
      otherwise: 'a mount there means "give me this device"',
    },
    {
      holds: `object.metadata.?annotations.orValue({}).all(k, !k.matches('(^|\\\\.)cdi\\\\.k8s\\\\.io(/|$)'))`,
      otherwise: 'annotations that choose devices are refused',
    },
    {
      holds: everyContainer(
        [
          ...['livenessProbe', 'readinessProbe', 'startupProbe'].map((probe) => withoutHost(`c.?${probe}`)),
          ...['postStart', 'preStop'].map((hook) => withoutHost(`c.?lifecycle.?${hook}`)),
        ].join(' && '),
        ['containers', 'initContainers'],
      ),
      otherwise: 'a probe or hook that names a host would be called by the kubelet, from the network of the node',
    },
    ...(image === undefined || imageVolume === undefined
      ? []
      : [
          {
            // A pod that was there before the rule may be changed in all but its images, so that its finalizers can go.
            holds: `(request.operation == 'UPDATE' && ${imagesOf('oldObject')} == ${imagesOf('object')}) || (${everyContainer(image)} && object.spec.?volumes.orValue([]).all(v, !has(v.image) || ${imageVolume}))`,
            otherwise: 'this provider does not allow one of the images',
          },
        ]),
    ...(rules.runtimeClass === undefined
      ? []
      : [
          {
            holds: `!(${isNew}) || object.spec.?runtimeClassName.orValue('') in ${listOf([rules.runtimeClass, ...(rules.gpuRuntimeClass === undefined ? [] : [rules.gpuRuntimeClass])])}`,
            otherwise: `pods of tenants run under the runtime class ${rules.runtimeClass}`,
          },
        ]),
  ];
}

const admission = 'admissionregistration.k8s.io/v1';
const labels = { [ownLabels.managedBy]: managedBy };

interface PolicyObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly labels: Record<string, string> };
  readonly spec: Record<string, unknown>;
}

const policyAndBinding = (name: string, spec: Record<string, unknown>): readonly PolicyObject[] => [
  {
    apiVersion: admission,
    kind: 'ValidatingAdmissionPolicy',
    metadata: { name, labels },
    spec: { failurePolicy: 'Fail', ...spec },
  },
  {
    apiVersion: admission,
    kind: 'ValidatingAdmissionPolicyBinding',
    metadata: { name, labels },
    spec: {
      policyName: name,
      validationActions: ['Deny'],
      matchResources: { namespaceSelector: { matchLabels: { [ownLabels.tenant]: 'true' } } },
    },
  },
];

const rule = (resources: readonly string[], operations: readonly string[] = ['CREATE', 'UPDATE']) => ({
  apiGroups: [''],
  apiVersions: ['v1'],
  operations,
  resources,
});
const deny = (holds: string, otherwise: string) => ({
  expression: holds,
  message: `gpulease: ${otherwise}`,
  reason: 'Forbidden',
});

/** Policies and bindings for the namespaces of tenants. */
export function tenantPolicyObjects(rules: PodRules): readonly PolicyObject[] {
  const isDeviceKey = `k in ${listOf(deviceVariables)}`;
  return [
    ...policyAndBinding(tenantPolicyName, {
      matchConstraints: { resourceRules: [rule(['pods', 'pods/ephemeralcontainers', 'pods/resize'])] },
      variables: [
        { name: 'device', expression: noted(annotations.tenantDevice, gpuResource) },
        // Absent on tenants made by a gateway that did not note it yet.
        { name: 'node', expression: noted(annotations.tenantNode, '') },
        // By the level of Pod Security, which such a tenant always had.
        {
          name: 'trusted',
          expression: `namespaceObject.metadata.?labels[?'pod-security.kubernetes.io/enforce'].orValue('') == 'privileged'`,
        },
      ],
      validations: checks(rules).map(({ holds, otherwise, untrusted }) =>
        deny(untrusted ? `variables.trusted || (${holds})` : holds, otherwise),
      ),
    }),
    ...policyAndBinding(`${tenantPolicyName}-data`, {
      matchConstraints: { resourceRules: [rule(['configmaps', 'secrets'])] },
      validations: [
        deny(
          `request.resource.resource != 'secrets' || object.?type.orValue('Opaque') in ${listOf(secretTypes)}`,
          'a Secret of this type is filled by the cluster, or means something to it',
        ),
        deny(
          [
            `object.?data.orValue({}).all(k, !(${isDeviceKey}))`,
            `(request.resource.resource != 'configmaps' || dyn(object).?binaryData.orValue({}).all(k, !(${isDeviceKey})))`,
          ].join(' && '),
          'a key of that name chooses devices when used as a variable',
        ),
      ],
    }),
    ...policyAndBinding(`${tenantPolicyName}-claim`, {
      matchConstraints: { resourceRules: [rule(['persistentvolumeclaims'], ['CREATE'])] },
      validations: [
        deny(
          `object.spec.?volumeName.orValue('') == '' && !has(object.spec.selector) && !has(object.spec.dataSource) && !has(object.spec.dataSourceRef)`,
          'a claim of a tenant names no volume and no source: what others stored there is theirs',
        ),
      ],
    }),
  ];
}
