/** What the provider says of a pod's containers, as far as the consumer's pod has them. */
import type { Container, ContainerState, ContainerStatus, Resources } from './pod.ts';
import {
  containerId,
  count,
  exitCode,
  isRecord,
  list,
  quantities,
  record,
  text,
  time,
  whole,
  word,
} from './untrusted.ts';

/** In the order of the consumer's containers. */
export function translateContainers(reported: unknown, containers: readonly Container[]): ContainerStatus[] {
  const all = list(reported, 256).map(record);
  return containers.flatMap((container) => {
    const found = all.find((status) => status.name === container.name);
    if (!found) return [];
    const status: ContainerStatus = {
      name: container.name,
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
    return [{ ...status, ...given(found, container) }];
  });
}

/** What it was given: resources, mounts, user, devices; only of what the consumer's container asks for. */
function given(found: Record<string, unknown>, container: Container): Partial<ContainerStatus> {
  const { limits, requests } = container.resources ?? {};
  const status: Partial<ContainerStatus> = {};
  const resources = translateResources(found.resources, container.resources);
  if (resources) status.resources = resources;
  const allocated = quantities(found.allocatedResources, requests);
  if (allocated) status.allocatedResources = allocated;
  const mounts = list(found.volumeMounts, 256).flatMap((entry) => {
    const { name, mountPath, readOnly, recursiveReadOnly } = record(entry);
    const own = container.volumeMounts?.some((mount) => mount.name === name && mount.mountPath === mountPath);
    if (!own) return [];
    const recursive = ['Disabled', 'IfPossible', 'Enabled'].includes(recursiveReadOnly as string);
    return [
      {
        name: name as string,
        mountPath: mountPath as string,
        ...(readOnly === true && { readOnly }),
        ...(recursive && { recursiveReadOnly: recursiveReadOnly as string }),
      },
    ];
  });
  if (mounts.length > 0) status.volumeMounts = mounts;
  const devices = translateDevices(found.allocatedResourcesStatus, Object.keys({ ...limits, ...requests }));
  if (devices.length > 0) status.allocatedResourcesStatus = devices;
  const user = record(record(found.user).linux);
  const [uid, gid] = [whole(user.uid), whole(user.gid)];
  if (uid !== undefined && gid !== undefined) {
    const groups = list(user.supplementalGroups, 256).flatMap((group) => whole(group) ?? []);
    status.user = { linux: { uid, gid, ...(groups.length > 0 && { supplementalGroups: groups }) } };
  }
  if (typeof found.stopSignal === 'string' && /^SIG[A-Z0-9+-]{1,16}$/.test(found.stopSignal))
    status.stopSignal = found.stopSignal;
  return status;
}

/** The provider counts limits where the consumer asked for none: those are not shown. */
export function translateResources(reported: unknown, asked: Resources | undefined): Resources | undefined {
  if (!isRecord(reported)) return undefined;
  const limits = quantities(reported.limits, asked?.limits);
  const requests = quantities(reported.requests, asked?.requests);
  return { ...(limits && { limits }), ...(requests && { requests }) };
}

/** The health of devices, by their ids. */
function translateDevices(reported: unknown, names: readonly string[]) {
  const told = new Map(list(reported, 16).map((entry) => [record(entry).name, record(entry)] as const));
  return names.flatMap((name) => {
    const entry = told.get(name);
    if (!entry) return [];
    const devices = new Map<string, { resourceID: string; health: string; message?: string }>();
    for (const one of list(entry.resources, 64).map(record)) {
      const resourceID = text(one.resourceID, 253);
      const { health } = one;
      if (resourceID === undefined || !['Healthy', 'Unhealthy', 'Unknown'].includes(health as string)) continue;
      const message = text(one.message, 1024);
      devices.set(resourceID, { resourceID, health: health as string, ...(message && { message }) });
    }
    return [{ name, resources: [...devices.values()] }];
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
