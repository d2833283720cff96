/** Values of charts/provider: who rents GPUs out. */
import { taints } from '../../api/labels.ts';
import { gatewayOptions, provisionerOptions } from '../gateway-options.ts';
import {
  chains,
  chainsSecret,
  hookPodsWith,
  monitoring,
  networkPolicy,
  podDisruptionBudget,
  podsOf,
  railsOf,
  serviceOf,
  shared,
} from './common.ts';
import {
  choice,
  flag,
  flagsOf,
  type Group,
  group,
  integer,
  map,
  name,
  objects,
  shaped,
  strings,
  text,
} from './tree.ts';

const price = { type: 'string', pattern: '^(0|[1-9][0-9]{0,8})(\\.[0-9]{1,6})?$' };

/** A cluster may have no other nodes than those that are rented out. */
const onAnyNode = [{ key: taints.offered, operator: 'Exists' }];
const hookPods = hookPodsWith(onAnyNode);

export const providerValues = group('Values of the chart for clusters that rent GPUs out.', {
  ...shared,
  processes: choice('Split', 'Single')(
    'Split: the gateway, which the internet reaches, makes no tenants and settles nothing; the provisioner does, and listens to nobody. Single: one process does all.',
    'Split',
  ),
  provider: group('Who rents out.', {
    name: shaped({ type: 'string', pattern: '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$' })(
      'Name, as consumers are told.',
      'provider',
    ),
    publicUrls: shaped({
      type: 'array',
      maxItems: 8,
      items: { type: 'string', pattern: '^https://[^\\s/]+(/[^\\s]*[^\\s/])?$' },
    })(
      'URLs by which consumers reach the gateway. The first one is shown to them. Not needed where it dials out (gateway.flags.dialOut).',
      [],
      ['https://gpu.example.com:8443'],
    ),
    keySecret: group(
      'Secret with the key that signs quotes and settlements, in the namespaces of both processes. You make it.',
      {
        name: name('Its name.', 'gpulease-provider-key'),
        key: text('Key in it: 32 bytes in hexadecimal, or a keystore.', 'key'),
        passwordKey: text('Key with the password of a keystore; empty: there is none.', ''),
      },
    ),
    payee: shaped({ type: 'string', pattern: '^(0x[0-9a-fA-F]{40})?$' })(
      'Account that may withdraw what is earned. Empty: that of the key.',
      '',
    ),
  }),
  chains,
  chainsSecret,
  rails: railsOf('By what you are paid: chain, contract, token, and its symbol as offers name it.'),
  offers: shaped({
    type: 'object',
    maxProperties: 200,
    propertyNames: { pattern: '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$' },
    // null, in one values file over another, takes an offer out of the list.
    additionalProperties: {
      type: ['object', 'null'],
      required: ['model', 'prices'],
      properties: {
        model: { type: 'string', minLength: 1, maxLength: 63 },
        prices: {
          type: 'array',
          minItems: 1,
          maxItems: 4,
          items: {
            type: 'object',
            additionalProperties: false,
            required: ['assetSymbol', 'perGpuHour'],
            properties: { assetSymbol: { type: 'string', minLength: 1, maxLength: 12 }, perGpuHour: price },
          },
        },
      },
    },
  })(
    'The price list: a GpuOffer for each, by its name; what stands under it is its spec. A nodeSelector makes it the offer of one pool of nodes. GpuOffers that you write yourself are left alone.',
    {},
    {
      'h100-sxm': {
        model: 'H100-SXM',
        interconnect: 'NVLink',
        prices: [{ assetSymbol: 'USDC', perGpuHour: '2.69' }],
        nodeSelector: { 'example.com/pool': 'h100' },
      },
    },
  ),
  gateway: group('The gateway, which consumers talk to.', {
    ...podsOf(2, '200m', '512Mi', onAnyNode),
    port: integer(1024, 65535)('Port that its pods listen at.', 8443),
    tunnelPorts: shaped({ type: 'string', pattern: '^[0-9]{1,5}-[0-9]{1,5}$' })(
      "Ports of its pods at which pods of tenants reach their consumers' Services.",
      '20000-29999',
    ),
    service: serviceOf('The Service before it.', 8443),
    flags: flagsOf('gateway', gatewayOptions, [
      'with',
      'privateNamespace',
      'gatewayAccount',
      'kubeconfig',
      'namespace',
      'name',
      'listen',
      'publicUrl',
      'tlsCert',
      'tlsKey',
      'keyFile',
      'keyPasswordFile',
      'payee',
      'chain',
      'addresses',
      'rails',
      'tunnelPorts',
      'tunnelAddress',
      'gatewayPods',
      'operationsPort',
      'logLevel',
      'logFormat',
    ]),
  }),
  provisioner: group(
    'The provisioner, which makes tenants and settles, when it is a process of its own. Flags that the gateway has too are set under gateway.flags, for both.',
    {
      ...podsOf(2, '100m', '384Mi', onAnyNode),
      namespace: name('Its namespace: nobody else reads Secrets there.', 'gpulease-provisioner'),
      createNamespace: flag('Make the namespace, unless it is there. It is kept when the chart is uninstalled.', true),
    },
  ),
  tls: group('The certificate of the gateway.', {
    mode: choice(
      'SelfSigned',
      'Secret',
      'CertManager',
    )(
      'SelfSigned: made by the gateway and kept in a Secret; consumers pin its key (GpuProvider spec.endpoint.spkiSHA256), which is in the ConfigMap gpulease-for-consumers. Secret: yours. CertManager: asked for by a Certificate.',
      'SelfSigned',
    ),
    secretName: name(
      'Secret of type kubernetes.io/tls, for the modes Secret and CertManager.',
      'gpulease-gateway-serving',
    ),
    issuerRef: group('Issuer of cert-manager.', {
      name: name('Its name.', ''),
      kind: choice('Issuer', 'ClusterIssuer')('Its kind.', 'ClusterIssuer'),
      group: text('Its API group.', 'cert-manager.io'),
    }),
    dnsNames: strings('Names in the certificate of cert-manager. Empty: the hosts of provider.publicUrls.', []),
  }),
  ingress: group(
    'An Ingress, where gateways share an address with others. It must pass TLS through, or speak TLS to the gateway and let upgrades through.',
    {
      enabled: flag('Make it.', false),
      className: text('IngressClass.', ''),
      host: text('Host name. Empty: that of the first of provider.publicUrls.', ''),
      annotations: map('Annotations. Those given here are for ingress-nginx.', {
        'nginx.ingress.kubernetes.io/ssl-passthrough': 'true',
        'nginx.ingress.kubernetes.io/backend-protocol': 'HTTPS',
      }),
      tlsSecretName: name('Secret with the certificate, where the Ingress ends TLS itself.', ''),
    },
  ),
  gatewayApi: group('A route of the Gateway API.', {
    enabled: flag('Make it.', false),
    kind: choice('TLSRoute', 'HTTPRoute')(
      'TLSRoute passes TLS through to the gateway: pins and streams work as they are. HTTPRoute ends TLS at the Gateway, which must then speak TLS to the Service (BackendTLSPolicy) and let upgrades through.',
      'TLSRoute',
    ),
    apiVersion: text('Version of the kind. Empty: the newest that the cluster has.', ''),
    parentRefs: objects(
      'Gateways (of the Gateway API) that it belongs to.',
      [],
      [{ name: 'public', namespace: 'infra' }],
    ),
    hostnames: strings('Host names. Empty: the hosts of provider.publicUrls.', []),
    annotations: map('Annotations.', {}),
  }),
  podDisruptionBudget,
  networkPolicy,
  monitoring,
  check: group(
    'What isolation of tenants leans on and only you can set up (`gpulease provider check`): a Job or test that fails, and says what to mend, where something stands in the way. It reads and changes nothing, so it does not try what needs more rights; run the command yourself for that.',
    {
      atInstall: flag(
        'Before each installation and upgrade, which it refuses. Nodes must be labelled gpulease.dev/offered before.',
        false,
      ),
      atTest: flag('With `helm test`.', false),
      ...hookPods,
    },
  ),
  setup: group(
    'The Job that runs after each installation and upgrade: it writes the price list, and what consumers need.',
    {
      enabled: flag('Run it.', true),
      timeoutSeconds: integer(10, 3600)(
        'How long is waited for the gateway. One that does not answer by then is told of in the ConfigMap, and the installation goes on.',
        60,
      ),
      ...hookPods,
    },
  ),
  uninstall: group('The Job that runs before the chart is uninstalled.', {
    enabled: flag('Run it. Without it, tenants, taints and vouchers that nobody cashes stay behind.', true),
    onOpenLeases: choice('End', 'Refuse')(
      'What is done with leases that run: no new ones are taken, and those that run are ended and settled; or the uninstallation is refused and nothing is changed.',
      'End',
    ),
    drainSeconds: integer(0, 86400)('How long leases that run are given, once their consumers are told.', 300),
    timeoutSeconds: integer(30, 604800)(
      'How long is waited. Helm itself waits for --timeout, which must be longer.',
      1800,
    ),
    ...hookPods,
  }),
  tests: group('What `helm test` runs.', { ...hookPods }),
});

/** Flags that the provisioner takes as the gateway has them. */
export const sharedProviderFlags: readonly string[] = Object.keys(provisionerOptions).filter(
  (flagName) => flagName in (providerValues.fields.gateway as Group & { fields: { flags: Group } }).fields.flags.fields,
);
