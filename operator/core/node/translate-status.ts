/**
 * What the provider says of a pod, as the consumer's pod may show it.
 *
 * The answer is untrusted: only known fields are read, of their type, cut to length, and only for containers that the
 * consumer's pod has. A pod that has ended stays as it ended. Addresses of the provider's network are not shown, unless the
 * lease says that they are routable: without a podIP Kubernetes makes no endpoint that nobody could reach.
 */
import type { ContainerState, ContainerStatus, Pod, PodCondition, PodStatus } from './pod.ts';
import { isTerminal } from './pod.ts';

export interface StatusView {
  readonly nodeAddress: string;
  readonly podIP: 'None' | 'Provider';
  /** False: nobody can say that a pod is ready now, though it may well run. True by default. */
  readonly nodeReady?: boolean;
}

const phases: readonly string[] = ['Pending', 'Running', 'Succeeded', 'Failed'];
/** PodScheduled is the consumer's scheduler's, Ready is counted here. */
const carriedConditions: readonly string[] = [
  'PodReadyToStartContainers',
  'Initialized',
  'ContainersReady',
  'DisruptionTarget',
];

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
    const ips = list(status.podIPs, 2).flatMap((entry) => address(record(entry).ip) ?? []);
    if (ips[0] !== undefined) {
      translated.podIP = ips[0];
      translated.podIPs = ips.map((ip) => ({ ip }));
    }
  }
  const { containers, initContainers, ephemeralContainers } = consumer.spec;
  const statuses = translateContainers(status.containerStatuses, containers);
  if (statuses.length > 0) translated.containerStatuses = statuses;
  const inits = translateContainers(status.initContainerStatuses, initContainers ?? []);
  if (inits.length > 0) translated.initContainerStatuses = inits;
  const ephemerals = translateContainers(status.ephemeralContainerStatuses, ephemeralContainers ?? []);
  if (ephemerals.length > 0) translated.ephemeralContainerStatuses = ephemerals;
  return translated;
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
    if (!found || !statusWord(found.status)) return [];
    return [condition(consumer, type, String(found.status), word(found.reason), text(found.message, 1024), now)];
  });
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

function translateContainers(reported: unknown, containers: readonly { name: string }[]): ContainerStatus[] {
  const all = list(reported, 256).map(record);
  return containers.flatMap(({ name }) => {
    const found = all.find((status) => status.name === name);
    if (!found) return [];
    const status: ContainerStatus = {
      name,
      ready: found.ready === true,
      restartCount: count(found.restartCount),
      image: text(found.image, 512) ?? '',
      imageID: text(found.imageID, 512) ?? '',
    };
    if (typeof found.started === 'boolean') status.started = found.started;
    const id = containerId(found.containerID);
    if (id) status.containerID = id;
    const state = translateState(found.state);
    if (state) status.state = state;
    const last = translateState(found.lastState);
    if (last) status.lastState = last;
    return [status];
  });
}

function translateState(value: unknown): ContainerState | undefined {
  const state = record(value);
  if (isRecord(state.waiting)) {
    const waiting: ContainerState['waiting'] = {};
    const reason = word(state.waiting.reason);
    const message = text(state.waiting.message, 1024);
    if (reason) waiting.reason = reason;
    if (message) waiting.message = message;
    return { waiting };
  }
  if (isRecord(state.running)) {
    const startedAt = time(state.running.startedAt);
    return { running: startedAt ? { startedAt } : {} };
  }
  if (isRecord(state.terminated)) {
    const ended = state.terminated;
    const terminated: NonNullable<ContainerState['terminated']> = { exitCode: exitCode(ended.exitCode) };
    if (typeof ended.signal === 'number' && Number.isInteger(ended.signal) && ended.signal > 0 && ended.signal < 128)
      terminated.signal = ended.signal;
    const reason = word(ended.reason);
    if (reason) terminated.reason = reason;
    // The kubelet's own bound of a termination message.
    const message = text(ended.message, 4096);
    if (message) terminated.message = message;
    const startedAt = time(ended.startedAt);
    if (startedAt) terminated.startedAt = startedAt;
    const finishedAt = time(ended.finishedAt);
    if (finishedAt) terminated.finishedAt = finishedAt;
    const id = containerId(ended.containerID);
    if (id) terminated.containerID = id;
    return { terminated };
  }
  return undefined;
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const record = (value: unknown): Record<string, unknown> => (isRecord(value) ? value : {});
const list = (value: unknown, most: number): unknown[] => (Array.isArray(value) ? value.slice(0, most) : []);
/** Empty text is no text: Kubernetes leaves such fields out. */
const text = (value: unknown, most: number): string | undefined =>
  typeof value === 'string' && value !== '' ? value.slice(0, most).toWellFormed() : undefined;
const word = (value: unknown): string | undefined =>
  typeof value === 'string' && /^[A-Za-z][A-Za-z0-9_,:.-]{0,127}$/.test(value) ? value : undefined;
const statusWord = (value: unknown): boolean => value === 'True' || value === 'False' || value === 'Unknown';
const time = (value: unknown): string | undefined =>
  typeof value === 'string' &&
  /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/.test(value) &&
  !Number.isNaN(Date.parse(value))
    ? value
    : undefined;
const count = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 0x7fffffff ? value : 0;
/** Out of range is no success. */
const exitCode = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && Math.abs(value) <= 0x7fffffff ? value : 255;
const containerId = (value: unknown): string | undefined =>
  typeof value === 'string' && /^[a-z0-9+.-]{1,32}:\/\/[A-Za-z0-9_.-]{1,128}$/.test(value) ? value : undefined;
/** The API server refuses a status with an address that is none, and then all of the pod's status would stand still. */
const address = (value: unknown): string | undefined =>
  typeof value === 'string' && value.length <= 45 && (isIPv4(value) || isIPv6(value)) ? value : undefined;
const isIPv4 = (value: string): boolean =>
  /^\d{1,3}(\.\d{1,3}){3}$/.test(value) &&
  value.split('.').every((part) => Number(part) <= 255 && String(Number(part)) === part);

const isIPv6 = (value: string): boolean => {
  const halves = value.split('::');
  if (halves.length > 2) return false;
  const groups = halves.flatMap((half) => (half === '' ? [] : half.split(':')));
  return (
    groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group)) &&
    (halves.length === 2 ? groups.length < 8 : groups.length === 8)
  );
};

/** As the API server writes times: whole seconds, UTC. */
export const timestamp = (date: Date): string => date.toISOString().replace(/\.\d{3}Z$/, 'Z');
