/**
 * What the provider says of a pod, as the consumer's pod may show it.
 *
 * The answer is untrusted: only known fields are read, of their type, cut to length, and only for containers that the
 * consumer's pod has. A pod that has ended stays as it ended. Addresses of the provider's network are not shown, unless the
 * lease says that they are routable: without a podIP Kubernetes makes no endpoint that nobody could reach.
 */
import { translateContainers, translateResources } from './container-status.ts';
import type { ContainerStatus, Pod, PodCondition, PodStatus, Resources } from './pod.ts';
import { isTerminal } from './pod.ts';
import { addresses, list, quantities, record, statusWord, text, time, word } from './untrusted.ts';

export interface StatusView {
  readonly nodeAddress: string;
  readonly podIP: 'None' | 'Provider';
  /** False: nobody can say that a pod is ready now, though it may well run. True by default. */
  readonly nodeReady?: boolean;
  /** The pod was to be resized, and the provider's side did not do it. */
  readonly resize?: { readonly reason: 'Infeasible' | 'Deferred'; readonly message: string };
  /** Ephemeral containers that were not carried, and why. */
  readonly withheld?: readonly { readonly name: string; readonly message: string }[];
}

const phases: readonly string[] = ['Pending', 'Running', 'Succeeded', 'Failed'];
/** PodScheduled is the consumer's scheduler's, Ready is counted here. */
const carriedConditions: readonly string[] = [
  'PodReadyToStartContainers',
  'Initialized',
  'ContainersReady',
  'DisruptionTarget',
  'PodResizePending',
  'PodResizeInProgress',
  'AllContainersRestarting',
];
/** These go when they are over; the others stay, and change. */
const passingConditions: readonly string[] = ['PodResizePending', 'PodResizeInProgress', 'AllContainersRestarting'];

/** Undefined when the pod has ended already: nothing that is said later changes that. */
export function translateStatus(remote: unknown, consumer: Pod, view: StatusView, now: Date): PodStatus | undefined {
  if (isTerminal(consumer)) return undefined;
  const object = record(remote);
  const status = record(object.status);
  const phase = text(status.phase, 16);
  const startTime =
    time(status.startTime) ?? consumer.status?.startTime ?? time(record(object.metadata).creationTimestamp);
  const translated: PodStatus = {
    phase: phase !== undefined && phases.includes(phase) ? phase : 'Pending',
    reason: word(status.reason) ?? null,
    message: text(status.message, 1024) ?? null,
    startTime: startTime ?? timestamp(now),
    hostIP: view.nodeAddress,
    hostIPs: [{ ip: view.nodeAddress }],
    conditions: translateConditions(status.conditions, consumer, view, now),
  };
  if (consumer.metadata.generation !== undefined) translated.observedGeneration = consumer.metadata.generation;
  if (view.podIP === 'Provider') {
    const ips = addresses(list(status.podIPs, 2).map((entry) => record(entry).ip));
    if (ips[0] !== undefined) {
      translated.podIP = ips[0];
      translated.podIPs = ips.map((ip) => ({ ip }));
    }
  }
  const { containers, initContainers, ephemeralContainers, resources: whole } = consumer.spec;
  const statuses = translateContainers(status.containerStatuses, containers);
  if (statuses.length > 0) translated.containerStatuses = statuses;
  const inits = translateContainers(status.initContainerStatuses, initContainers ?? []);
  if (inits.length > 0) translated.initContainerStatuses = inits;
  const ephemerals = [
    ...translateContainers(status.ephemeralContainerStatuses, ephemeralContainers ?? []),
    ...withheldStatuses(status.ephemeralContainerStatuses, view),
  ];
  if (ephemerals.length > 0) translated.ephemeralContainerStatuses = ephemerals;
  if (whole !== undefined) {
    const resources = translateResources(status.resources, whole as Resources);
    if (resources) translated.resources = resources;
    const allocated = quantities(status.allocatedResources, (whole as Resources).requests);
    if (allocated) translated.allocatedResources = allocated;
  }
  return translated;
}

/** Why a container waits that never went to the provider. */
export const notCarriedReason = 'NotCarried';

/** In the words that `kubectl debug` shows while it waits for one to start. */
function withheldStatuses(reported: unknown, { withheld = [] }: StatusView): ContainerStatus[] {
  const there = list(reported, 256).map((status) => record(status).name);
  return withheld
    .filter(({ name }) => !there.includes(name))
    .map(({ name, message }) => ({
      name,
      ready: false,
      restartCount: 0,
      image: '',
      imageID: '',
      state: { waiting: { reason: notCarriedReason, message: message.slice(0, 1024) } },
    }));
}

/** The pod is never run: refused before, or by, the provider. */
export function refusedStatus(consumer: Pod, reason: string, message: string, now: Date): PodStatus {
  return {
    phase: 'Failed',
    reason: reason.slice(0, 64),
    message: message.slice(0, 1024),
    conditions: unready(consumer, 'PodFailed', now),
    startTime: consumer.status?.startTime,
  };
}

/**
 * The provider no longer has the pod, and says so. What its containers did last is not known, so they count as killed, as
 * the kubelet counts containers that vanished.
 */
export function lostStatus(consumer: Pod, reason: string, message: string, now: Date): PodStatus {
  const end = (name: string): ContainerStatus => {
    const known = [
      ...(consumer.status?.containerStatuses ?? []),
      ...(consumer.status?.initContainerStatuses ?? []),
    ].find((status) => status.name === name);
    if (known?.state?.terminated) return known;
    return {
      name,
      ready: false,
      started: false,
      restartCount: known?.restartCount ?? 0,
      image: known?.image ?? '',
      imageID: known?.imageID ?? '',
      ...(known?.containerID && { containerID: known.containerID }),
      state: {
        terminated: {
          exitCode: 137,
          reason: 'ContainerStatusUnknown',
          message: 'the container could not be located when the pod was found gone',
          ...(known?.state?.running?.startedAt && { startedAt: known.state.running.startedAt }),
          finishedAt: timestamp(now),
        },
      },
      ...(known?.lastState && { lastState: known.lastState }),
    };
  };
  const status: PodStatus = {
    phase: 'Failed',
    reason: reason.slice(0, 64),
    message: message.slice(0, 1024),
    conditions: unready(consumer, 'PodFailed', now),
    containerStatuses: consumer.spec.containers.map((container) => end(container.name)),
  };
  if (consumer.spec.initContainers?.length)
    status.initContainerStatuses = consumer.spec.initContainers.map((container) => end(container.name));
  return status;
}

function translateConditions(reported: unknown, consumer: Pod, view: StatusView, now: Date): PodCondition[] {
  const all = list(reported, 32).map(record);
  const conditions = carriedConditions.flatMap((type) => {
    const found = all.find((c) => c.type === type);
    if (type === 'PodResizePending' && view.resize)
      return [condition(consumer, type, 'True', view.resize.reason, view.resize.message.slice(0, 1024), now)];
    if (!found || !statusWord(found.status)) return [];
    return [condition(consumer, type, String(found.status), word(found.reason), text(found.message, 1024), now)];
  });
  for (const type of passingConditions) {
    const over = !conditions.some((c) => c.type === type) && consumer.status?.conditions?.some((c) => c.type === type);
    if (over) conditions.push({ type, $patch: 'delete' });
  }
  const reportedReady = all.find((c) => c.type === 'Ready');
  const containersReady = conditions.find((c) => c.type === 'ContainersReady');
  // Readiness gates are set on the consumer's pod, by the consumer's controllers; the provider has never seen them.
  const gate = (consumer.spec.readinessGates ?? []).find(
    ({ conditionType }) => consumer.status?.conditions?.find((c) => c.type === conditionType)?.status !== 'True',
  );
  if (view.nodeReady === false) conditions.push(condition(consumer, 'Ready', 'False', 'NodeNotReady', undefined, now));
  else if (containersReady?.status === 'True' && gate)
    conditions.push(
      condition(
        consumer,
        'Ready',
        'False',
        'ReadinessGatesNotReady',
        `corresponding condition of pod readiness gate "${gate.conditionType}" is not True.`,
        now,
      ),
    );
  else if (reportedReady && statusWord(reportedReady.status))
    conditions.push(
      condition(
        consumer,
        'Ready',
        String(reportedReady.status),
        word(reportedReady.reason),
        text(reportedReady.message, 1024),
        now,
      ),
    );
  return conditions;
}

function unready(consumer: Pod, reason: string, now: Date): PodCondition[] {
  return ['ContainersReady', 'Ready'].map((type) => condition(consumer, type, 'False', reason, undefined, now));
}

/** The transition time is ours: the provider's clock says nothing about the consumer's conditions. */
function condition(
  consumer: Pod,
  type: string,
  status: string,
  reason: string | undefined,
  message: string | undefined,
  now: Date,
): PodCondition {
  const before = consumer.status?.conditions?.find((c) => c.type === type);
  const made: PodCondition = {
    type,
    status,
    lastTransitionTime:
      before?.status === status && before.lastTransitionTime ? before.lastTransitionTime : timestamp(now),
  };
  // Null where there is none, or the merge would keep what was said of the state before: Ready, because of "ContainersNotReady".
  Object.assign(made, { reason: reason ?? null, message: message ?? null });
  if (consumer.metadata.generation !== undefined) made.observedGeneration = consumer.metadata.generation;
  return made;
}

/** As the API server writes times: whole seconds, UTC. */
export const timestamp = (date: Date): string => date.toISOString().replace(/\.\d{3}Z$/, 'Z');
