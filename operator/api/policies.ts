/**
 * Admission policies that the consumer's cluster runs itself: CEL in its API server, no webhook of ours that could be down.
 *
 *   gpulease-lease            a pod with the label of a lease or pool gets the selector and the tolerations that it needs
 *   gpulease-binding          a pod of a namespace that may not use a lease is refused before it is bound to its node
 *   gpulease-assigned-pod     the same, for pods that are made with a node's name in them
 *   gpulease-elsewhere        pods that tolerate everything look elsewhere than on nodes that they would be refused on, and
 *                             pods that must be spread evenly do not count nodes that taints keep them away from
 *   gpulease-daemonset        DaemonSets make no pods for leased nodes
 *   gpulease-daemonset-pod    pods of DaemonSets that were there before the policy are not bound to leased nodes
 *
 * Which fail open, and why. All but the first stand in the way of pods that know nothing of us, so whatever goes wrong in
 * them lets the request pass (`Ignore`); the virtual node refuses what they would have, before anything leaves the cluster.
 * The first only sees pods that ask for a lease by name. Without its help they would run anywhere, so it fails closed.
 *
 * Cost. The API server evaluates match conditions once a parameter object, and converts that object each time unless it is a
 * custom one. So nothing here selects Nodes: with 1,000 of them each binding in the cluster, ours or not, converts all 1,000
 * (94 ms of CPU, measured on v1.36.3, where it takes 2 to 3 ms without a policy). There is one object, `GpuAccess`, in which a
 * node is looked up by name: with 1,000 entries no difference could be measured.
 *
 * https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/
 * https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/ (v1 since Kubernetes 1.36)
 */
import { accessName } from './access.ts';
import { accessLabelPrefix, apiVersion, labels, managedBy, restricted, taints, virtualNodePrefix } from './labels.ts';

type Manifest = {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly labels: Record<string, string> };
  readonly spec: Record<string, unknown>;
};

export interface Policy {
  readonly name: string;
  /** For the reference: what a user notices. */
  readonly effect: string;
  readonly failure: 'Fail' | 'Ignore';
  readonly manifests: readonly Manifest[];
}

interface Rule {
  readonly apiGroups: readonly string[];
  readonly apiVersions: readonly string[];
  readonly operations: readonly string[];
  readonly resources: readonly string[];
}

interface PolicySource {
  readonly name: string;
  readonly effect: string;
  readonly rule: Rule;
  readonly failure: 'Fail' | 'Ignore';
  /** Reads GpuAccess as `params`. While there is none, the policy has nothing to say. */
  readonly readsAccess?: boolean;
  readonly when: Readonly<Record<string, string>>;
  readonly variables?: Readonly<Record<string, string>>;
  /** Each is a binding: objects without these labels cost no evaluation. */
  readonly onlyLabelled?: readonly string[];
  /** CEL of a list of JSONPatch. */
  readonly patch?: string;
  readonly refuse?: { readonly unless: string; readonly message: string };
}

const admission = 'admissionregistration.k8s.io/v1';
const metadata = (name: string) => ({ name, labels: { [labels.managedBy]: managedBy } });
const named = (expressions: Readonly<Record<string, string>>) =>
  Object.entries(expressions).map(([name, expression]) => ({ name, expression }));

function policy(source: PolicySource): Policy {
  const { name, rule, failure, when, variables = {}, patch, refuse, onlyLabelled } = source;
  const family = patch === undefined ? 'ValidatingAdmissionPolicy' : 'MutatingAdmissionPolicy';
  const definition = {
    apiVersion: admission,
    kind: family,
    metadata: metadata(name),
    spec: {
      failurePolicy: failure,
      ...(source.readsAccess ? { paramKind: { apiVersion, kind: 'GpuAccess' } } : {}),
      matchConstraints: { resourceRules: [rule] },
      matchConditions: named(when),
      ...(Object.keys(variables).length > 0 ? { variables: named(variables) } : {}),
      ...(patch === undefined
        ? {
            validations: [{ expression: refuse!.unless, messageExpression: refuse!.message, reason: 'Forbidden' }],
          }
        : {
            reinvocationPolicy: 'IfNeeded',
            mutations: [{ patchType: 'JSONPatch', jsonPatch: { expression: patch } }],
          }),
    },
  };
  const bind = (its: string, selector: object) => ({
    apiVersion: admission,
    kind: `${family}Binding`,
    metadata: metadata(its),
    spec: {
      policyName: name,
      ...(patch === undefined ? { validationActions: ['Deny'] } : {}),
      ...(source.readsAccess ? { paramRef: { name: accessName, parameterNotFoundAction: 'Allow' } } : {}),
      ...selector,
    },
  });
  const bindings = onlyLabelled
    ? onlyLabelled.map((key, i) =>
        bind(i === 0 ? name : `${name}-${i + 1}`, {
          matchResources: { objectSelector: { matchExpressions: [{ key, operator: 'Exists' }] } },
        }),
      )
    : [bind(name, {})];
  return { name, effect: source.effect, failure, manifests: [definition, ...bindings] };
}

const creates = (group: string, resources: readonly string[], operations = ['CREATE']): Rule => ({
  apiGroups: [group],
  apiVersions: ['v1'],
  operations,
  resources,
});

// The rest is CEL, made of pieces. Optional fields are looked at with `.?`, as most of a pod may be left out.

const text = (value: string) => `'${value}'`;
const labelOf = (key: string) => `object.metadata.?labels[?${text(key)}].orValue('')`;
const ofDaemonSet =
  "object.metadata.?ownerReferences.orValue([]).exists(o, o.kind == 'DaemonSet' && o.apiVersion.startsWith('apps/') && o.?controller.orValue(false))";
const nodeName = "object.spec.?nodeName.orValue('')";
const isVirtual = (name: string) => `${name}.startsWith(${text(virtualNodePrefix)})`;

/** Whether a toleration `t` tolerates a NoSchedule taint, as the scheduler decides it. `equal`: CEL of the taint's value. */
const tolerates = (key: string, equal?: string) =>
  [
    `(t.?key.orValue('') == '' || t.key == ${text(key)})`,
    `t.?effect.orValue('') in ['', 'NoSchedule']`,
    `(t.?operator.orValue('') == 'Exists'${equal === undefined ? '' : ` || (t.?operator.orValue('') in ['', 'Equal'] && t.?value.orValue('') == ${equal})`})`,
  ].join(' && ');

/** Adds a piece where it is missing. */
const add = (missing: string, path: string, value: string) =>
  `(${missing} ? [JSONPatch{op: 'add', path: ${path}, value: ${value}}] : [])`;

/** The list of alternatives of a required node affinity, where there is one. `spec` is CEL of a pod's spec. */
const required = 'requiredDuringSchedulingIgnoredDuringExecution';
const termsOf = (spec: string) => `${spec}.?affinity.?nodeAffinity.?${required}.?nodeSelectorTerms.orValue([])`;

/** An expression of a node selector, and whether `e` is one like it. Both CEL. */
interface Requirement {
  readonly expression: string;
  readonly isIt: string;
}

/**
 * Adds a requirement to every alternative of the required node affinity that lacks it, and takes nothing away. With a
 * second one, a node must meet either: each alternative is there twice, then, unless some has the first already.
 * `spec`: CEL of a pod's spec, which lies at `path`.
 */
function requireOfNode(spec: string, path: string, first: Requirement, second?: Requirement) {
  const affinity = `${path}/affinity/nodeAffinity`;
  const lacking = second ? 'lackingEither' : 'lacking';
  const list = `${affinity}/${required}/nodeSelectorTerms/`;
  const either = second ? [first, second] : [first];
  const whole = `{'nodeSelectorTerms': [${either.map(({ expression }) => `{'matchExpressions': [${expression}]}`).join(', ')}]}`;
  const has = (term: string, { isIt }: Requirement) => `${term}.?matchExpressions.orValue([]).exists(e, ${isIt})`;
  const hasList = 'has(variables.terms[i].matchExpressions)';
  const addTo = (index: string, { expression }: Requirement) =>
    [
      `variables.${lacking}.map(i, JSONPatch{`,
      `    op: 'add',`,
      `    path: '${list}' + string(${index}) + (${hasList} ? '/matchExpressions/-' : '/matchExpressions'),`,
      `    value: ${hasList} ? dyn(${expression}) : dyn([${expression}])`,
      '  })',
    ].join('\n');
  return {
    variables: {
      terms: termsOf(spec),
      [lacking]: `lists.range(size(variables.terms)).filter(i, ${second ? `!variables.terms.exists(t, ${has('t', first)})` : `!${has('variables.terms[i]', first)}`})`,
    },
    patch: [
      `!has(${spec}.affinity)`,
      `  ? [JSONPatch{op: 'add', path: '${path}/affinity', value: {'nodeAffinity': {'${required}': ${whole}}}}]`,
      `: !has(${spec}.affinity.nodeAffinity)`,
      `  ? [JSONPatch{op: 'add', path: '${affinity}', value: {'${required}': ${whole}}}]`,
      `: !has(${spec}.affinity.nodeAffinity.${required})`,
      `  ? [JSONPatch{op: 'add', path: '${affinity}/${required}', value: ${whole}}]`,
      ...(second
        ? [
            `: variables.${lacking}.map(i, JSONPatch{op: 'copy', from: '${list}' + string(i), path: '${list}-'})`,
            `  + ${addTo('i', first)}`,
            `  + ${addTo('size(variables.terms) + i', second)}`,
          ]
        : [`: ${addTo('i', first)}`]),
    ].join('\n'),
  };
}

/** Every leased node has the label, and no other node. */
const notLeased: Requirement = {
  expression: `{'key': ${text(labels.lease)}, 'operator': 'DoesNotExist'}`,
  isIt: `e.key == ${text(labels.lease)} && e.operator == 'DoesNotExist'`,
};
/** Not a leased node, or one that everybody may use; or one that this namespace may use. Labels of nodes say so. */
const notRestricted: Requirement = {
  expression: `{'key': dyn(${text(labels.access)}), 'operator': dyn('NotIn'), 'values': dyn([${text(restricted)}])}`,
  isIt: `e.key == ${text(labels.access)}`,
};
const openToNamespace: Requirement = {
  expression: `{'key': dyn(${text(accessLabelPrefix)} + request.namespace), 'operator': dyn('Exists')}`,
  isIt: `e.key == ${text(accessLabelPrefix)} + request.namespace`,
};

/** A pod that asks for no lease: whatever leased node it may get to, its author did not mean it. */
const asksForNone = `!(${[labels.lease, labels.pool]
  .map((key) => `${labelOf(key)} != '' || ${text(key)} in object.spec.?nodeSelector.orValue({})`)
  .join(' || ')})`;
/** Whether it would stay on a node with this taint, whatever its value: most who tolerate it tolerate everything. */
const toleratesSome = (key: string) =>
  `object.spec.?tolerations.orValue([]).exists(t, (t.?key.orValue('') == '' || t.key == ${text(key)}) && t.?effect.orValue('') in ['', 'NoSchedule'])`;
const toleratesOurs = `(${toleratesSome(taints.lease)} && ${toleratesSome(taints.virtualNode)})`;

/** Of GpuAccess: whether pods of this namespace may use the node that `name`, CEL of a string, names. */
const entry = (name: string) => `params.spec.nodes[${name}]`;
const mayUse = (name: string) => `('*' in ${entry(name)}.namespaces || request.namespace in ${entry(name)}.namespaces)`;

const isEnding = (name: string) => `${entry(name)}.?ending.orValue(false)`;

const getsThere = `(${toleratesOurs} || params.spec.untainted.exists(n, n in params.spec.nodes && !${mayUse('n')}))`;
const mustBeSpread = `(size(params.spec.untainted) == 0 && object.spec.?topologySpreadConstraints.orValue([]).exists(c, c.whenUnsatisfiable == 'DoNotSchedule'))`;
const closed = requireOfNode('object.spec', '/spec', notRestricted, openToNamespace);
const unreachable = requireOfNode('object.spec', '/spec', notLeased);

const refusal = (name: string) => ({
  // A node that is not in there is none of ours, or so new that the virtual node itself must decide.
  unless: `!(${name} in params.spec.nodes) || (${mayUse(name)} && !${isEnding(name)})`,
  message: `${isEnding(name)} ? 'lease ' + ${entry(name)}.lease + ' ends: its node takes no more pods' : 'pods of namespace ' + request.namespace + ' may not use lease ' + ${entry(name)}.lease + ': add the namespace to spec.access.namespaces of the GpuLease, or run the pod elsewhere'`,
});

export const policies: readonly Policy[] = [
  policy({
    name: 'gpulease-lease',
    effect: `A pod with the label \`${labels.lease}: NAME\` or \`${labels.pool}: NAME\` gets the node selector and the tolerations for that lease's or pool's nodes. The lease is looked for in the pod's own namespace, or in the one that the label \`${labels.leaseNamespace}\` names. What the author wrote stays.`,
    // An update by somebody who writes the pod as he wrote it first would take away what was added, which is forbidden. So
    // what was there is put back; a pod that was made without it is left alone.
    rule: creates('', ['pods'], ['CREATE', 'UPDATE']),
    failure: 'Fail',
    onlyLabelled: [labels.lease, labels.pool],
    when: {
      'names-a-lease-or-a-pool': `${labelOf(labels.lease)} != '' || ${labelOf(labels.pool)} != ''`,
      'is-not-assigned-yet': `request.operation == 'UPDATE' || ${nodeName} == ''`,
      'is-not-of-a-daemonset': `!${ofDaemonSet}`,
    },
    variables: {
      lease: labelOf(labels.lease),
      pool: labelOf(labels.pool),
      selector: [
        `(variables.lease == '' ? [] : [[${text(labels.lease)}, variables.lease]])`,
        `(variables.pool == '' ? [] : [[${text(labels.pool)}, variables.pool]])`,
        `[[${text(labels.leaseNamespace)}, object.metadata.?labels[?${text(labels.leaseNamespace)}].orValue(request.namespace)]]`,
      ].join(' + '),
      tolerations: 'object.spec.?tolerations.orValue([])',
      isNew: `request.operation == 'CREATE'`,
      oldSelector: 'variables.isNew ? {} : oldObject.spec.?nodeSelector.orValue({})',
      oldTolerations: 'variables.isNew ? [] : oldObject.spec.?tolerations.orValue([])',
    },
    patch: [
      add(
        '!has(object.spec.nodeSelector) && (variables.isNew || size(variables.oldSelector) > 0)',
        `'/spec/nodeSelector'`,
        '{}',
      ),
      `variables.selector.filter(s, !(s[0] in object.spec.?nodeSelector.orValue({})) && (variables.isNew || s[0] in variables.oldSelector)).map(s, JSONPatch{op: 'add', path: '/spec/nodeSelector/' + jsonpatch.escapeKey(s[0]), value: variables.isNew ? s[1] : variables.oldSelector[s[0]]})`,
      add('!has(object.spec.tolerations)', `'/spec/tolerations'`, '[]'),
      `variables.oldTolerations.filter(t, t.?key.orValue('') in [${text(taints.lease)}, ${text(taints.virtualNode)}] && !(t in variables.tolerations)).map(t, JSONPatch{op: 'add', path: '/spec/tolerations/-', value: t})`,
      add(
        `variables.isNew && variables.lease != '' && !variables.tolerations.exists(t, ${tolerates(taints.lease, 'variables.lease')})`,
        `'/spec/tolerations/-'`,
        `{'key': ${text(taints.lease)}, 'operator': 'Equal', 'value': variables.lease, 'effect': 'NoSchedule'}`,
      ),
      // The leases of a pool have names that nobody knows beforehand.
      add(
        `variables.isNew && variables.lease == '' && !variables.tolerations.exists(t, ${tolerates(taints.lease)})`,
        `'/spec/tolerations/-'`,
        `{'key': ${text(taints.lease)}, 'operator': 'Exists', 'effect': 'NoSchedule'}`,
      ),
      add(
        `variables.isNew && !variables.tolerations.exists(t, ${tolerates(taints.virtualNode, text(managedBy))})`,
        `'/spec/tolerations/-'`,
        `{'key': ${text(taints.virtualNode)}, 'operator': 'Equal', 'value': ${text(managedBy)}, 'effect': 'NoSchedule'}`,
      ),
    ].join('\n+ '),
  }),
  policy({
    name: 'gpulease-binding',
    effect:
      'A pod of a namespace that may not use a lease is not bound to its node. It stays Pending, and its events say why.',
    rule: creates('', ['pods/binding', 'bindings']),
    failure: 'Ignore',
    readsAccess: true,
    when: { 'is-to-a-leased-node': isVirtual('object.target.name') },
    refuse: refusal('object.target.name'),
  }),
  policy({
    name: 'gpulease-assigned-pod',
    effect: 'Such a pod that is created with `spec.nodeName` set is refused at once.',
    rule: creates('', ['pods']),
    failure: 'Ignore',
    readsAccess: true,
    when: { 'is-for-a-leased-node': isVirtual(nodeName) },
    refuse: refusal('object.spec.nodeName'),
  }),
  policy({
    name: 'gpulease-elsewhere',
    effect:
      'A pod that asks for no lease, but that no taint keeps away, as it tolerates everything or some lease is `untainted`, gets a node affinity away from leased nodes that its namespace may not use. Otherwise the scheduler would choose one of them, as they are the emptiest, be refused, and choose it again. A pod that taints do keep away gets one away from all leased nodes if it has a topology spread constraint of `DoNotSchedule`: their hosts and zones would count as places without any such pod, and no place could have more than one.',
    rule: creates('', ['pods']),
    failure: 'Ignore',
    readsAccess: true,
    // One policy for both, as each that looks at every new pod costs the API server a third of a millisecond.
    when: {
      'gets-there-or-must-be-spread': `${getsThere} || ${mustBeSpread}`,
      'asks-for-no-lease': asksForNone,
      'is-not-assigned': `${nodeName} == ''`,
      'is-not-of-a-daemonset': `!${ofDaemonSet}`,
    },
    variables: { getsThere, ...closed.variables, ...unreachable.variables },
    patch: `variables.getsThere ? (\n${closed.patch}\n) : (\n${unreachable.patch}\n)`,
  }),
  policy({
    name: 'gpulease-daemonset',
    effect:
      'The template of a DaemonSet gets a node affinity away from leased nodes when it is created or its template changes, so that no pod is made for them. A DaemonSet that was there before keeps its template until its next rollout (`kubectl rollout restart`).',
    rule: creates('apps', ['daemonsets'], ['CREATE', 'UPDATE']),
    failure: 'Ignore',
    // A change of the template is a rollout. One that nobody asked for would restart, say, the network of every node.
    when: {
      'is-new-or-rolled-out': `request.operation == 'CREATE' || object.spec.template != oldObject.spec.template`,
    },
    ...requireOfNode('object.spec.template.spec', '/spec/template/spec', notLeased),
  }),
  policy({
    name: 'gpulease-daemonset-pod',
    effect:
      'A pod that such an older DaemonSet makes for a leased node is not bound there, and so takes nothing of what is leased. It stays Pending until that rollout.',
    rule: creates('', ['pods']),
    failure: 'Ignore',
    onlyLabelled: ['controller-revision-hash'],
    when: {
      'is-of-a-daemonset': ofDaemonSet,
      'may-be-for-a-leased-node': `${termsOf('object.spec')}.exists(t, t.?matchFields.orValue([]).exists(f, f.key == 'metadata.name' && f.?values.orValue([]).exists(v, ${isVirtual('v')})))`,
    },
    ...requireOfNode('object.spec', '/spec', notLeased),
  }),
];
