/** Values that the charts are rendered with, and what must come of them. */
import type { Chart } from './lab.ts';

export interface Row {
  readonly says: string;
  readonly chart: Chart;
  readonly set?: readonly string[];
  /** Of another cluster than one of Kubernetes 1.36. */
  readonly kubeVersion?: string;
  readonly apiVersions?: readonly string[];
  /** `Kind/name` that must be there. */
  readonly has?: readonly string[];
  readonly hasNot?: readonly string[];
  /** Text that must be in the YAML. */
  readonly text?: readonly RegExp[];
  /** It is refused, and says why and what to do. */
  readonly refused?: RegExp;
}

const all = (prefix: string) =>
  ['podMonitor', 'serviceMonitor', 'rules', 'dashboard'].map((one) => `${prefix}.${one}.enabled=true`);

export const table: readonly Row[] = [
  {
    says: 'the sandbox gets three processes of the consumer, each under its own account',
    chart: 'operator',
    has: [
      'Deployment/gpulease-operator',
      'Deployment/gpulease-wallet',
      'Deployment/gpulease-approver',
      'Namespace/gpulease-wallet',
      'CustomResourceDefinition/gpuleases.gpulease.dev',
      'MutatingAdmissionPolicy/gpulease-lease',
      'MutatingAdmissionPolicy/gpulease-not-evicted',
      'ValidatingAdmissionPolicy/gpulease-operator-confined',
      'DeviceClass/gpulease.dev',
      'StorageClass/gpulease',
    ],
    hasNot: ['PodMonitor/gpulease-operator', 'PodDisruptionBudget/gpulease-operator'],
    text: [/--with=none/, /audience: gpulease-wallet/, /helm.sh\/resource-policy: keep/],
  },
  {
    says: 'one process does all of the consumer, and reads the key itself',
    chart: 'operator',
    set: ['processes=Single'],
    has: ['Deployment/gpulease-operator'],
    hasNot: ['Deployment/gpulease-wallet', 'Deployment/gpulease-approver', 'Namespace/gpulease-wallet'],
    text: [/--wallet-key-file=/],
  },
  {
    says: 'kinds may come from elsewhere, and go with the chart',
    chart: 'operator',
    set: ['crds.enabled=false'],
    hasNot: ['CustomResourceDefinition/gpuleases.gpulease.dev'],
  },
  {
    says: 'policies, devices and storage can be left out',
    chart: 'operator',
    set: ['policies.enabled=false', 'devices.enabled=false', 'storage.enabled=false'],
    hasNot: ['MutatingAdmissionPolicy/gpulease-lease', 'DeviceClass/gpulease.dev', 'StorageClass/gpulease'],
    has: ['ValidatingAdmissionPolicy/gpulease-operator-confined'],
  },
  {
    says: 'Kubernetes 1.30 gets what it knows',
    chart: 'operator',
    kubeVersion: '1.30.0',
    has: ['ValidatingAdmissionPolicy/gpulease-binding'],
    hasNot: ['MutatingAdmissionPolicy/gpulease-lease', 'DeviceClass/gpulease.dev'],
  },
  {
    says: 'replicas get a budget of disruption and look for different nodes',
    chart: 'operator',
    set: ['operator.replicas=2', 'wallet.replicas=2'],
    has: ['PodDisruptionBudget/gpulease-operator', 'PodDisruptionBudget/gpulease-wallet'],
    hasNot: ['PodDisruptionBudget/gpulease-approver'],
    text: [/podAntiAffinity/],
  },
  {
    says: 'everything that watches can be switched on',
    chart: 'operator',
    set: [...all('monitoring'), 'monitoring.rules.runbookUrl=https://docs.example.com/'],
    has: [
      'PodMonitor/gpulease-wallet',
      'ServiceMonitor/gpulease-operator',
      'PrometheusRule/gpulease-operator',
      'ConfigMap/gpulease-operator-dashboard',
    ],
    text: [/runbook_url: .?https:\/\/docs\.example\.com\/GpuleaseOperatorNotLeading\.md/],
  },
  {
    says: 'a remote signer has the key, so that no Secret is mounted',
    chart: 'operator',
    set: [
      'wallet.flags.signerUrl=https://signer.example.com',
      'wallet.flags.signerAccount=0x0000000000000000000000000000000000000001',
    ],
    text: [/--signer-url=https:\/\/signer\.example\.com/],
    hasNot: ['Secret/gpulease-wallet-key'],
  },
  {
    says: 'endpoints with keys in them come from a Secret',
    chart: 'operator',
    set: ['chainsSecret.name=rpc'],
    text: [/GPULEASE_CHAIN/, /name: rpc, key: chains/],
  },
  {
    says: 'large numbers stay whole numbers, not 3.1536e+07',
    chart: 'provider',
    set: ['gateway.flags.retention=31536000', 'gateway.flags.settleInterval=2592000'],
    text: [/--retention=31536000/, /--settle-interval=2592000/],
  },
  {
    says: 'an image may be named by its digest',
    chart: 'operator',
    set: [`image.digest=sha256:${'a'.repeat(64)}`],
    text: [new RegExp(`image: "gpulease@sha256:${'a'.repeat(64)}"`)],
  },
  {
    says: 'the sandbox gets two processes of the provider, a price list and a way in',
    chart: 'provider',
    has: [
      'Deployment/gpulease-gateway',
      'Deployment/gpulease-provisioner',
      'Namespace/gpulease-provisioner',
      'Service/gpulease-gateway',
      'ConfigMap/gpulease-price-list',
      'Job/gpulease-setup',
      'Job/gpulease-uninstall-provider',
      'CustomResourceDefinition/gpuoffers.gpulease.dev',
    ],
    hasNot: [
      'CustomResourceDefinition/gpuleases.gpulease.dev',
      'Ingress/gpulease-gateway',
      'Certificate/gpulease-gateway',
    ],
    text: [/nodePort: 30443/],
  },
  {
    says: 'one process does all of the provider',
    chart: 'provider',
    set: ['processes=Single'],
    hasNot: ['Deployment/gpulease-provisioner', 'Namespace/gpulease-provisioner'],
  },
  {
    says: 'flags that concern both reach both processes',
    chart: 'provider',
    set: ['gateway.flags.denyEgress={203.0.113.0/24}', 'gateway.flags.held=true'],
    text: [/(?:--deny-egress=203\.0\.113\.0\/24[\s\S]*){2}/],
  },
  {
    says: 'cert-manager makes the certificate, with a key that stays',
    chart: 'provider',
    set: [
      'tls.mode=CertManager',
      'tls.issuerRef.name=letsencrypt',
      'provider.publicUrls={https://gpu.example.com:8443,https://203.0.113.7:8443}',
    ],
    has: ['Certificate/gpulease-gateway'],
    text: [
      /rotationPolicy: Never/,
      /dnsNames:\s+- gpu\.example\.com/,
      /ipAddresses:\s+- 203\.0\.113\.7/,
      /--tls-cert=/,
    ],
  },
  {
    says: 'an Ingress passes TLS through',
    chart: 'provider',
    set: ['ingress.enabled=true', 'ingress.className=nginx', 'provider.publicUrls={https://gpu.example.com}'],
    has: ['Ingress/gpulease-gateway'],
    text: [/ssl-passthrough: "true"/, /host: "gpu\.example\.com"/],
  },
  {
    says: 'a TLSRoute passes TLS through',
    chart: 'provider',
    set: [
      'gatewayApi.enabled=true',
      'gatewayApi.parentRefs[0].name=public',
      'provider.publicUrls={https://gpu.example.com}',
    ],
    has: ['TLSRoute/gpulease-gateway'],
    text: [/apiVersion: gateway\.networking\.k8s\.io\/v1alpha2/],
  },
  {
    says: 'a TLSRoute is of version 1 where the cluster has it',
    chart: 'provider',
    set: ['gatewayApi.enabled=true', 'gatewayApi.parentRefs[0].name=public'],
    apiVersions: ['gateway.networking.k8s.io/v1/TLSRoute'],
    text: [/apiVersion: gateway\.networking\.k8s\.io\/v1\nkind: TLSRoute/],
  },
  {
    says: 'an HTTPRoute ends no stream',
    chart: 'provider',
    set: ['gatewayApi.enabled=true', 'gatewayApi.kind=HTTPRoute', 'gatewayApi.parentRefs[0].name=public'],
    has: ['HTTPRoute/gpulease-gateway'],
    text: [/request: 0s/],
  },
  {
    says: 'everything that watches a provider can be switched on',
    chart: 'provider',
    set: all('monitoring'),
    has: [
      'PodMonitor/gpulease-provisioner',
      'ServiceMonitor/gpulease-gateway',
      'PrometheusRule/gpulease-provider',
      'ConfigMap/gpulease-provider-dashboard',
    ],
  },
  {
    says: 'the cluster is looked at before anything is installed, and with tests',
    chart: 'provider',
    set: ['check.atInstall=true', 'check.atTest=true', 'gateway.flags.gpuRuntimeClass=nvidia'],
    has: ['Job/gpulease-check', 'Pod/gpulease-check-test'],
    text: [/helm\.sh\/hook: pre-install,pre-upgrade/, /--runtime-class=nvidia/],
  },
  {
    says: 'without hooks nothing is set up or ended',
    chart: 'provider',
    set: ['setup.enabled=false', 'uninstall.enabled=false', 'networkPolicy.enabled=false'],
    hasNot: ['Job/gpulease-setup', 'Job/gpulease-uninstall-provider', 'NetworkPolicy/gpulease-gateway'],
  },

  // Refusals.
  {
    says: 'no chain',
    chart: 'operator',
    set: ['chains=null'],
    refused: /chains is empty: say which chain leases are paid on/,
  },
  {
    says: 'no limit',
    chart: 'operator',
    set: ['wallet.maxEscrow=null'],
    refused: /wallet\.maxEscrow is empty: say how much/,
  },
  {
    says: 'no daily limit',
    chart: 'operator',
    set: ['wallet.dailyLimit=null'],
    refused: /wallet\.dailyLimit is empty/,
  },
  {
    says: 'no contracts',
    chart: 'operator',
    set: ['wallet.rails=null'],
    refused: /wallet\.rails is empty: say which contracts/,
  },
  {
    says: 'a contract on a chain without endpoints',
    chart: 'operator',
    set: ['chains[0].id=1'],
    refused: /rails names chain 31337, and chains does not/,
  },
  {
    says: "the wallet's key where the operator lists Secrets",
    chart: 'operator',
    set: ['wallet.namespace=gpulease-system'],
    refused: /wallet\.namespace is the namespace of the release/,
  },
  {
    says: 'a value that is none',
    chart: 'operator',
    set: ['operator.replica=2'],
    refused: /operator[\s\S]*(additional properties 'replica' not allowed|replica)/,
  },
  {
    says: 'too many replicas',
    chart: 'operator',
    set: ['operator.replicas=99'],
    refused: /operator\/replicas[\s\S]*maximum/,
  },
  {
    says: 'a flag beyond what the program takes',
    chart: 'operator',
    set: ['operator.flags.voucherPeriodSeconds=0'],
    refused: /voucherPeriodSeconds[\s\S]*minimum/,
  },
  {
    says: 'money that is a number',
    chart: 'operator',
    set: ['wallet.maxEscrow.USDC=100'],
    refused: /maxEscrow\/USDC[\s\S]*string/,
  },
  {
    says: 'an endpoint that is no URL',
    chart: 'operator',
    set: ['chains[0].rpcUrls[0]=rpc.example.com'],
    refused: /rpcUrls\/0[\s\S]*pattern/,
  },
  { says: 'an unknown mode', chart: 'operator', set: ['processes=Many'], refused: /processes[\s\S]*(Split|one of)/ },
  {
    says: 'gateways may dial in, by a Service, with a certificate of yours',
    chart: 'operator',
    set: [
      'reverse.enabled=true',
      'reverse.urls={wss://gpulease.example.com:9444}',
      'reverse.tlsSecretName=gpulease-reverse',
      'reverse.service.type=NodePort',
      'reverse.service.nodePort=30944',
    ],
    has: ['Service/gpulease-reverse'],
    text: [
      /--reverse-listen=0\.0\.0\.0:9444/,
      /--reverse-url=wss:\/\/gpulease\.example\.com:9444/,
      /--reverse-tls-cert=\/var\/run\/gpulease\/reverse\/tls\.crt/,
      /secretName: gpulease-reverse/,
      /name: reverse\s+port: 9444\s+targetPort: reverse\s+nodePort: 30944/,
    ],
  },
  {
    says: 'gateways that may dial in, nobody says where',
    chart: 'operator',
    set: ['reverse.enabled=true'],
    refused: /reverse\.urls is empty: say by which URL/,
  },
  { says: 'no way in', chart: 'provider', set: ['provider.publicUrls=null'], refused: /provider\.publicUrls is empty/ },
  {
    says: 'a gateway that dials out needs no way in, and consumers are told so',
    chart: 'provider',
    set: [
      'provider.publicUrls=null',
      'gateway.service.type=ClusterIP',
      'gateway.flags.dialOut={wss://relay.example.com:9444,wss://gpulease.example.com:9444}',
    ],
    text: [
      /--dial-out=wss:\/\/relay\.example\.com:9444/,
      /--dial-out=wss:\/\/gpulease\.example\.com:9444/,
      /"--gateway=[^"]+"\s+- "--provider-name/,
    ],
  },
  {
    says: 'a way in without TLS',
    chart: 'provider',
    set: ['provider.publicUrls={http://gpu.example.com}'],
    refused: /publicUrls\/0[\s\S]*pattern/,
  },
  { says: 'no rails', chart: 'provider', set: ['rails=null'], refused: /rails is empty: say by what you are paid/ },
  {
    says: 'an address that is none',
    chart: 'provider',
    set: ['rails[0].escrow=0x12', 'rails[0].chainId=31337', 'rails[0].token=0x12'],
    refused: /rails\/0\/escrow[\s\S]*pattern/,
  },
  {
    says: 'an offer without a price',
    chart: 'provider',
    set: ['offers.h100-sxm.prices=null'],
    refused: /offers\/h100-sxm[\s\S]*prices/,
  },
  {
    says: 'a price that is a number',
    chart: 'provider',
    set: ['offers.h100-sxm.prices[0].perGpuHour=2', 'offers.h100-sxm.prices[0].assetSymbol=USDC'],
    refused: /perGpuHour[\s\S]*string/,
  },
  {
    says: 'cert-manager without an issuer',
    chart: 'provider',
    set: ['tls.mode=CertManager'],
    refused: /tls\.issuerRef\.name is empty/,
  },
  {
    says: 'a route that belongs to no Gateway',
    chart: 'provider',
    set: ['gatewayApi.enabled=true'],
    refused: /gatewayApi\.parentRefs is empty/,
  },
  {
    says: "the provisioner's transactions where the gateway lists Secrets",
    chart: 'provider',
    set: ['provisioner.namespace=gpulease-system'],
    refused: /provisioner\.namespace is the namespace of the release/,
  },
];
