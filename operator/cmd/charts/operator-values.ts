/** Values of charts/operator: the consumer's side. */
import { approverOptions } from '../run-approver.ts';
import { operatorOptions } from '../run-operator.ts';
import { walletOptions } from '../wallet-options.ts';
import {
  chains,
  chainsSecret,
  hookPods,
  monitoring,
  networkPolicy,
  podDisruptionBudget,
  podsOf,
  railsOf,
  serviceOf,
  shared,
} from './common.ts';
import { amount, choice, flag, flagsOf, group, integer, name, shaped, strings, text } from './tree.ts';

const amounts = (about: string, example: string) =>
  shaped({
    type: 'object',
    additionalProperties: amount('').schema,
    propertyNames: { pattern: '^[A-Za-z0-9.$₮-]{1,12}$' },
    maxProperties: 16,
  })(about, {}, { USDC: example });

const rails = railsOf(
  'Contracts and tokens that the wallet may use, when it is a process of its own. It signs calls of no others.',
);

export const operatorValues = group('Values of the chart for clusters that lease GPUs.', {
  ...shared,
  processes: choice('Split', 'Single')(
    'Split: operator, wallet and approver are processes of their own, each under an account that can do its part and no more. Single: one process does all.',
    'Split',
  ),
  policies: group('Admission policies, which bring pods to leased nodes and keep others away.', {
    enabled: flag('Install those that this version of Kubernetes knows.', true),
  }),
  devices: group('The DeviceClass gpulease.dev, for leases that show their GPUs as devices.', {
    enabled: flag('Install it, where Kubernetes has resource.k8s.io/v1.', true),
  }),
  storage: group('The StorageClass gpulease, for claims on leased nodes, and its CSIDriver.', {
    enabled: flag('Install them.', true),
  }),
  chains,
  chainsSecret,
  operator: group('The operator: leases, virtual nodes, pods on them.', {
    ...podsOf(2, '200m', '512Mi'),
    servicePorts: shaped({ type: 'string', pattern: '^[0-9]{1,5}-[0-9]{1,5}$' })(
      'Ports of its pods at which Services reach pods on leased nodes.',
      '20000-29999',
    ),
    flags: flagsOf('operator', operatorOptions, [
      'with',
      'walletNamespace',
      'walletTokenFile',
      'kubeconfig',
      'namespace',
      'walletKeyFile',
      'walletPasswordFile',
      'chain',
      'maxEscrow',
      'servicePorts',
      'reverseListen',
      'reverseUrl',
      'reverseTlsCert',
      'reverseTlsKey',
      'operationsPort',
      'logLevel',
      'logFormat',
    ]),
  }),
  reverse: group(
    'Where gateways dial in that nobody can connect to (spec.endpoint.via: Reverse). The operator that works listens; a gateway that comes to another dials again.',
    {
      enabled: flag('Let them, by a Service.', false),
      urls: strings(
        'URLs by which they reach it, wss://HOST[:PORT]: what providers give to their gateways as --dial-out. A gateway that dialled another is refused.',
        [],
        ['wss://gpulease.example.com:9444'],
      ),
      port: integer(8081, 65535)('Port that the pods listen at.', 9444),
      tlsSecretName: name(
        "Secret with its certificate (tls.crt, tls.key). Empty: one of the operator's own making, whose pin is logged with the URL.",
        '',
      ),
      service: serviceOf('The Service before it.', 9444),
    },
  ),
  wallet: group('The wallet, which alone has the key, and signs what the operator may ask for.', {
    ...podsOf(1, '50m', '192Mi'),
    namespace: name(
      'Its namespace, when it is a process of its own: nobody else reads Secrets there.',
      'gpulease-wallet',
    ),
    createNamespace: flag('Make the namespace, unless it is there. It is kept when the chart is uninstalled.', true),
    keySecret: group(
      "Secret with the key of the account that pays, in the wallet's namespace (the release's, if there is one process). You make it; see the notes after the installation. Not read where flags.signerUrl names a remote signer.",
      {
        name: name('Its name.', 'gpulease-wallet-key'),
        key: text('Key in it: 32 bytes in hexadecimal, or a keystore.', 'key'),
        passwordKey: text('Key with the password of a keystore; empty: there is none.', ''),
      },
    ),
    maxEscrow: amounts(
      'Most that may be locked in all escrows together, in whole tokens, by symbol. A token that is not named is not spent.',
      '1000',
    ),
    dailyLimit: amounts(
      'Most that goes into escrows within a day, in whole tokens, by symbol, whatever the operator asks for. Counted by the wallet itself; needed when it is a process of its own.',
      '500',
    ),
    rails,
    port: integer(1024, 65535)('Port at which the operator reaches it.', 8444),
    flags: flagsOf('wallet', walletOptions, [
      'kubeconfig',
      'namespace',
      'keyFile',
      'keyPasswordFile',
      'keySecret',
      'chain',
      'addresses',
      'rails',
      'dailyLimit',
      'operatorAccount',
      'listen',
      'operationsPort',
      'logLevel',
      'logFormat',
    ]),
  }),
  approver: group(
    'The approver: signs off serving certificates of virtual nodes, and lets the operator into namespaces that have leases.',
    {
      ...podsOf(1, '20m', '128Mi'),
      flags: flagsOf('approver', approverOptions, [
        'kubeconfig',
        'namespace',
        'operatorAccount',
        'operatorPods',
        'closedNamespace',
        'operationsPort',
        'logLevel',
        'logFormat',
      ]),
      closedNamespaces: strings(
        'Namespaces that the operator is never let into, whatever leases say, beside kube-system and those of gpulease.',
        [],
      ),
    },
  ),
  podDisruptionBudget,
  networkPolicy,
  monitoring,
  uninstall: group('The Job that runs before the chart is uninstalled.', {
    enabled: flag('Run it. Without it, open escrows and finalizers stay behind.', true),
    onOpenLeases: choice('End', 'Refuse')(
      'What is done with leases that run: ended, settled and refunded; or the uninstallation is refused and nothing is changed.',
      'End',
    ),
    timeoutSeconds: integer(30, 86400)(
      'How long is waited for leases to be drained and settled. Helm itself waits for --timeout, which must be longer.',
      1800,
    ),
    ...hookPods,
  }),
  tests: group('What `helm test` runs.', { ...hookPods }),
});
