/**
 * One virtual node in this process: what is watched at its provider, the objects carried there, and its kubelet API. The Node
 * object itself is kept by `node.ts`.
 */
import { annotations } from '../api/labels.ts';
import type { Pod } from '../core/node/pod.ts';
import type { Service } from '../core/node/service.ts';
import type { ServiceLinks } from '../core/node/service-links.ts';
import { onlyTokens } from '../core/node/token-wish.ts';
import { carriedHash } from '../core/node/translate-pod.ts';
import type { Clock } from '../engine/clock.ts';
import { createInformer } from '../engine/informer.ts';
import type { EngineMetrics } from '../engine/metrics.ts';
import {
  type Change,
  type Cluster,
  type EventRecorder,
  type Informer,
  type KubeObject,
  type Log,
  resources,
} from '../engine/types.ts';
import { pause } from '../wire/timing.ts';
import type { Callers } from './api/callers.ts';
import { type KubeletServer, type StartKubeletServer, startKubeletServer } from './api/server.ts';
import type { FollowedObjects } from './followed.ts';
import { createObjectCarrier, type ObjectRef } from './objects.ts';
import { type PodHost, remoteIndexes } from './pods.ts';
import { type RemoteLease, remoteCluster } from './remote.ts';
import { type RemoteEvent, toldEvents, trimEvent } from './remote-events.ts';
import type { Endpoints } from './services/endpoints.ts';
import { createForward, type Forward } from './services/forward.ts';
import { createReach, type Reach } from './services/reach.ts';
import { createTokenCarrier } from './tokens.ts';
import type { NodeSpec, ServingCertificate, ServingCertificates } from './types.ts';

export interface Host extends PodHost {
  spec: NodeSpec;
  /** To its pods, and from them to Services of this cluster. */
  readonly forward: Forward;
  readonly reach: Reach;
  readonly port: number | undefined;
  renewCa(): void;
  /** Whether the provider began to answer, or ceased to, since this was asked last. */
  linkChanged(): boolean;
  stop(): Promise<void>;
}

export interface HostOptions {
  readonly name: string;
  readonly spec: NodeSpec;
  readonly lease: RemoteLease;
  readonly consumer: Cluster;
  readonly address: string;
  readonly listenHost: string;
  readonly ports: { readonly from: number; readonly to: number } | undefined;
  readonly certificates: ServingCertificates;
  readonly callers: Callers;
  readonly clientCa: () => string | undefined;
  readonly clientCaReady: Promise<void>;
  /** The port that the Node object names, from an earlier run. */
  readonly lastPort: () => Promise<number | undefined>;
  readonly podOf: (namespace: string, name: string, signal: AbortSignal) => Promise<Pod | undefined>;
  readonly podsHere: () => readonly Pod[];
  readonly podOfRemote: (remoteName: string) => Pod | undefined;
  /** e.g. v1.36.3+gpulease.0.1.0 */
  readonly kubeletVersion: string;
  readonly heartbeatLastsSeconds: number;
  readonly objectPollSeconds: number;
  readonly services: Informer<Service & KubeObject>;
  readonly endpoints: Endpoints;
  readonly clusterDomain: string;
  readonly events: EventRecorder;
  readonly startServer?: StartKubeletServer;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics?: EngineMetrics;
  /** The port opened, the provider listed its pods, or said where its Services are. */
  readonly onProgress: () => void;
  readonly onRemotePod: (change: Change<Pod>) => void;
  readonly onRemoteEvent: (event: RemoteEvent, ofFirstList: boolean) => void;
  readonly onMissing: (ref: ObjectRef, podUids: readonly string[]) => void;
  readonly onTokenFailure: (pod: Pod, message: string) => void;
  readonly serviceVariables: (links: ServiceLinks) => Readonly<Record<string, string>>;
  readonly followed: FollowedObjects;
  readonly wantedObjects: () => ReadonlySet<string>;
}

/** Beyond these a provider is not serving a tenant but filling our memory. */
const mostEvents = 20_000;
const mostPods = (spec: NodeSpec): number => spec.served.pods * 4 + 200;
/** JSON of one status. The largest honest ones are a tenth of it. */
const mostStatusBytes = 256 * 1024;
/** So long a provider may take to list its pods before its node counts as unreachable. */
const adoptSeconds = 20;
const sweepAfterSeconds = 60;
const sweepEverySeconds = 3600;

export function openHost(options: HostOptions): Host {
  const { name, lease, clock, log } = options;
  const stopping = new AbortController();
  const { signal } = stopping;
  const flooded = new AbortController();
  const listening = AbortSignal.any([signal, flooded.signal]);
  const remote = remoteCluster(`provider of ${name}`, lease, clock);
  const informerOptions = { cluster: remote, log, clock, metrics: options.metrics };
  const remotePods = createInformer<Pod & KubeObject>({
    ...informerOptions,
    resource: resources.pods,
    trim: trimPod,
    indexes: remoteIndexes,
  });
  const remoteEvents = createInformer<RemoteEvent>({
    ...informerOptions,
    resource: resources.events,
    fieldSelector: toldEvents,
    trim: trimEvent,
  });
  const objects = createObjectCarrier({
    consumer: options.consumer,
    remote,
    clock,
    log,
    pollSeconds: options.objectPollSeconds,
    onMissing: options.onMissing,
    services: options.serviceVariables,
    followed: options.followed,
  });
  const tokens = createTokenCarrier({
    consumer: options.consumer,
    remote,
    clock,
    log,
    onFailure: options.onTokenFailure,
  });
  const forward = createForward({ lease, clock, log, onBroken: () => host.spec.ask?.() });
  const reach = createReach({
    lease,
    owner: options.spec.lease,
    wanted: () => host.spec.services ?? [],
    services: options.services,
    endpoints: options.endpoints,
    clusterDomain: options.clusterDomain,
    events: options.events,
    clock,
    log,
    onKnown: options.onProgress,
  });
  let wasLinked = true;
  let server: KubeletServer | undefined;
  let certificate: ServingCertificate | undefined;
  let misbehaves: string | undefined;
  const openedAtMs = clock.monotonicMs();

  const host: Host = {
    name,
    spec: options.spec,
    address: options.address,
    lease,
    remote,
    remotePods: remotePods as Informer<Pod>,
    objects,
    tokens,
    forward,
    reach,
    aliasesFor: (namespace) => reach.aliasesFor(namespace),
    get port() {
      return server?.port;
    },
    health() {
      if (misbehaves !== undefined) return { ready: false, reason: 'ProviderMisbehaves', message: misbehaves };
      const health = host.spec.healthy();
      if (!health.ready || remotePods.synced) return health;
      return {
        ready: false,
        reason: 'ProviderUnreachable',
        message: 'The provider has not said yet which pods it runs.',
        // A process that has just started adopts a node as it is: its restart must not be seen on it.
        undecided: clock.monotonicMs() - openedAtMs < adoptSeconds * 1000,
      };
    },
    renewCa() {
      if (certificate) server?.renew(certificate, options.clientCa());
    },
    linkChanged() {
      const linked = host.spec.linked?.() ?? true;
      if (linked === wasLinked) return false;
      wasLinked = linked;
      forward.check();
      reach.check();
      return true;
    },
    async stop() {
      stopping.abort(new Error(`${name} is served no longer by this process`));
      forward.close();
      await server?.close();
    },
  };

  /** Counts what an informer holds, and stops listening to a provider that floods. */
  function guard<T extends KubeObject>(informer: Informer<T>, most: () => number, what: string): void {
    let held = 0;
    informer.onChange(({ type }) => {
      if (type === 'added') held++;
      if (type === 'deleted') held--;
      if (held <= most() || misbehaves !== undefined) return;
      misbehaves = `The provider reports more than ${most()} ${what} for this lease.`;
      log.error({ node: name, what, held }, 'the provider floods: no longer listening to it');
      options.onProgress();
      flooded.abort(new Error(misbehaves));
    });
  }
  guard(remotePods, () => mostPods(host.spec), 'pods');
  guard(remoteEvents, () => mostEvents, 'events');
  remotePods.onChange((change) => options.onRemotePod(change));
  remoteEvents.onChange(({ type, object }) => {
    if (type !== 'deleted') options.onRemoteEvent(object, !remoteEvents.synced);
  });

  const background = (what: string, work: Promise<unknown>) =>
    void work.catch((error: unknown) => {
      if (!listening.aborted) log.error({ node: name, error }, `${what} ended unexpectedly`);
    });
  background('the watch of remote pods', remotePods.run(listening));
  background('the watch of remote events', remoteEvents.run(listening));
  background('carrying objects', objects.run(signal));
  background('carrying tokens', tokens.run(signal));
  background('reaching Services', reach.run(signal));
  background('the first list of remote pods', remotePods.waitForSync(signal).then(options.onProgress));
  background('the sweep', sweep());
  background('the kubelet API', serve());

  async function sweep(): Promise<void> {
    await remotePods.waitForSync(signal);
    await pause(clock, sweepAfterSeconds * 1000, signal);
    while (!signal.aborted) {
      try {
        await objects.sweep(options.wantedObjects(), signal);
      } catch (error) {
        if (!signal.aborted) log.debug({ node: name, error }, 'leftover objects could not be looked for');
      }
      await pause(clock, sweepEverySeconds * 1000, signal);
    }
  }

  /** Opens the port with a certificate of our own, then asks for the cluster's, and for the next before it ends. */
  async function serve(): Promise<void> {
    await options.clientCaReady;
    certificate = await options.certificates.selfSigned(name, options.address);
    while (!server && !signal.aborted) {
      try {
        server = await listen(certificate);
      } catch (error) {
        log.warn({ node: name, error }, 'the kubelet API could not be opened');
        await pause(clock, 2000, signal);
      }
    }
    if (signal.aborted) {
      await server?.close();
      return;
    }
    options.onProgress();
    let isOwn = true;
    for (let failures = 0; !signal.aborted; ) {
      try {
        const signed = await options.certificates.signed(name, options.address, signal);
        failures = signed ? 0 : failures + 1;
        if (signed) [certificate, isOwn] = [signed, false];
      } catch (error) {
        failures += 1;
        if (!signal.aborted) log.debug({ node: name, error }, 'no certificate was signed');
      }
      const nowMs = clock.now().getTime();
      // What the cluster signed is good to its end: API servers that verify take no other.
      const lastMs = (isOwn ? certificate.renewAt : (certificate.expiresAt ?? certificate.renewAt)).getTime();
      if (lastMs <= nowMs) [certificate, isOwn] = [await options.certificates.selfSigned(name, options.address), true];
      server?.renew(certificate, options.clientCa());
      const againMs = Math.min(10 * 60_000, 5000 * 2 ** Math.min(failures, 10));
      const waitMs = failures === 0 ? Math.max(60_000, certificate.renewAt.getTime() - nowMs) : againMs;
      await pause(clock, isOwn ? waitMs : Math.min(waitMs, Math.max(1000, lastMs - nowMs)), signal);
    }
  }

  async function listen(first: ServingCertificate): Promise<KubeletServer> {
    const open = (port: number) =>
      (options.startServer ?? startKubeletServer)({
        nodeName: name,
        host: options.listenHost,
        port,
        certificate: first,
        clientCaPem: options.clientCa(),
        callers: options.callers,
        lease,
        podOf: options.podOf,
        podsHere: options.podsHere,
        podOfRemote: options.podOfRemote,
        served: () => host.spec.served,
        kubeletVersion: options.kubeletVersion,
        heartbeatLastsSeconds: options.heartbeatLastsSeconds,
        now: () => clock.now(),
        log,
      });
    const { ports } = options;
    const last = await options.lastPort();
    const inRange = (port: number) => !ports || (port >= ports.from && port <= ports.to);
    const wanted = last !== undefined && inRange(last) ? [last] : [];
    if (ports) for (let port = ports.from; port <= ports.to; port++) wanted.push(port);
    else wanted.push(0);
    for (const port of wanted) {
      try {
        return await open(port);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
      }
    }
    throw new Error(ports ? `no port of ${ports.from}-${ports.to} is free` : 'no port is free');
  }

  return host;
}

const ownAnnotations: readonly string[] = [
  annotations.podName,
  annotations.podNamespace,
  annotations.podUid,
  carriedHash,
];

/** What is read of a remote pod: whose it is, and what became of it. */
function trimPod(pod: Pod & KubeObject): Pod & KubeObject {
  const { name, namespace, uid, resourceVersion, creationTimestamp, deletionTimestamp, deletionGracePeriodSeconds } =
    pod.metadata;
  const kept: Record<string, string> = {};
  for (const key of ownAnnotations) {
    const value = pod.metadata.annotations?.[key];
    if (typeof value === 'string' && value.length <= 253) kept[key] = value;
  }
  const bytes = pod.status === undefined ? 0 : JSON.stringify(pod.status).length;
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name,
      namespace,
      uid,
      resourceVersion,
      creationTimestamp,
      deletionTimestamp,
      deletionGracePeriodSeconds,
      annotations: kept,
    },
    spec: { containers: [], ...onlyTokens(pod) },
    ...(pod.status && { status: bytes <= mostStatusBytes ? pod.status : { phase: pod.status.phase } }),
  };
}
