/** The ways to change a JSON document that an API server knows. */
import { sameJson } from '../../operator/engine/equal.ts';
import { isRecord } from '../../operator/engine/errors.ts';

/** Lists that are maps in disguise, and the field that names their entries. All other lists are replaced whole. */
const listKeys: Readonly<Record<string, string>> = {
  conditions: 'type',
  containers: 'name',
  initContainers: 'name',
  ephemeralContainers: 'name',
  env: 'name',
  volumes: 'name',
  volumeMounts: 'mountPath',
  ownerReferences: 'uid',
  addresses: 'type',
  podIPs: 'ip',
  hostIPs: 'ip',
};

/** RFC 7386. */
export function applyMergePatch(target: unknown, patch: unknown): unknown {
  if (!isRecord(patch)) return patch;
  const result: Record<string, unknown> = isRecord(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else result[name] = applyMergePatch(result[name], value);
  }
  return result;
}

export function applyStrategicPatch(target: unknown, patch: unknown, field = ''): unknown {
  if (Array.isArray(patch)) {
    const key = listKeys[field];
    if (!key || !Array.isArray(target)) return patch;
    const result = [...target];
    for (const entry of patch) {
      if (isRecord(entry) && '$patch' in entry && entry.$patch !== 'delete')
        throw new Error('this fake knows no $patch but delete');
      const at = result.findIndex((present) => isRecord(present) && isRecord(entry) && present[key] === entry[key]);
      if (isRecord(entry) && entry.$patch === 'delete') {
        if (at >= 0) result.splice(at, 1);
      } else if (at >= 0) result[at] = applyStrategicPatch(result[at], entry);
      else result.push(entry);
    }
    return result;
  }
  if (!isRecord(patch)) return patch;
  if (Object.keys(patch).some((name) => name.startsWith('$'))) throw new Error('this fake knows no directives here');
  const result: Record<string, unknown> = isRecord(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else result[name] = applyStrategicPatch(result[name], value, name);
  }
  return result;
}

/** RFC 6902. Throws for a failed test or a path that is not there. */
export function applyJsonPatch(document: unknown, patch: unknown): unknown {
  if (!Array.isArray(patch)) throw new Error('a JSON patch is a list');
  const root = { document };
  for (const step of patch) {
    if (!isRecord(step) || typeof step.path !== 'string') throw new Error('not a step of a JSON patch');
    const { op, path } = step;
    if (op === 'test') {
      if (!sameJson(lookup(root, path) ?? null, step.value ?? null)) throw new Error(`testing value ${path} failed`);
    } else if (op === 'add') insertAt(root, path, step.value);
    else if (op === 'remove') removeAt(root, path);
    else if (op === 'replace') {
      removeAt(root, path);
      insertAt(root, path, step.value);
    } else if (op === 'move' || op === 'copy') {
      const value = structuredClone(lookup(root, String(step.from)));
      if (value === undefined) throw new Error(`${step.from} does not exist`);
      if (op === 'move') removeAt(root, String(step.from));
      insertAt(root, path, value);
    } else throw new Error(`unknown operation ${op}`);
  }
  return root.document;
}

const pointer = (path: string) =>
  ['document', ...path.split('/').slice(1)].map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'));

function lookup(root: object, path: string): unknown {
  let value: unknown = root;
  for (const part of pointer(path)) {
    value = Array.isArray(value) ? value[Number(part)] : isRecord(value) ? value[part] : undefined;
  }
  return value;
}

function parentOf(root: object, path: string): [parent: Record<string, unknown> | unknown[], last: string] {
  const parts = pointer(path);
  const last = parts.pop()!;
  let parent: unknown = root;
  for (const part of parts)
    parent = Array.isArray(parent) ? parent[Number(part)] : (parent as Record<string, unknown>)[part];
  if (!isRecord(parent) && !Array.isArray(parent)) throw new Error(`${path}: no such place`);
  return [parent, last];
}

function insertAt(root: object, path: string, value: unknown) {
  const [parent, last] = parentOf(root, path);
  if (!Array.isArray(parent)) parent[last] = value;
  else if (last === '-') parent.push(value);
  else if (Number(last) >= 0 && Number(last) <= parent.length) parent.splice(Number(last), 0, value);
  else throw new Error(`${path}: no such place`);
}

function removeAt(root: object, path: string) {
  const [parent, last] = parentOf(root, path);
  if (Array.isArray(parent)) {
    if (!(Number(last) < parent.length)) throw new Error(`${path} does not exist`);
    parent.splice(Number(last), 1);
  } else {
    if (!(last in parent)) throw new Error(`${path} does not exist`);
    delete parent[last];
  }
}

// ---- server-side apply: paths are JSON lists of names; `{"type":"Ready"}` picks an entry of a keyed list.

/** The fields that an applied document sets. */
export function ownedPaths(value: unknown, at: unknown[] = [], field = ''): string[] {
  if (Array.isArray(value) && listKeys[field]) {
    const key = listKeys[field];
    return value.flatMap((entry) => (isRecord(entry) ? ownedPaths(entry, [...at, { [key]: entry[key] }]) : []));
  }
  // Finalizers are a set: each applier adds its own.
  if (Array.isArray(value) && field === 'finalizers') return value.map((name) => JSON.stringify([...at, { '': name }]));
  if (isRecord(value) && Object.keys(value).length > 0)
    return Object.entries(value).flatMap(([name, inner]) => ownedPaths(inner, [...at, name], name));
  return [JSON.stringify(at)];
}

/** Whether a path is of the field by which a list knows its entry. */
export function namesEntry(path: string): boolean {
  const [entry, name] = (JSON.parse(path) as unknown[]).slice(-2);
  return isRecord(entry) && typeof name === 'string' && name in entry;
}

/** Writes `part` into `target`, in place. */
export function mergeApplied(target: Record<string, unknown>, part: Record<string, unknown>) {
  for (const [name, value] of Object.entries(part)) {
    const key = listKeys[name];
    if (Array.isArray(value) && name === 'finalizers') {
      const present = Array.isArray(target[name]) ? (target[name] as unknown[]) : [];
      target[name] = [...present, ...value.filter((entry) => !present.includes(entry))];
    } else if (Array.isArray(value) && key) {
      const present: unknown[] = Array.isArray(target[name]) ? (target[name] as unknown[]) : [];
      target[name] = present;
      for (const entry of value) {
        const found = present.find((other) => isRecord(other) && isRecord(entry) && other[key] === entry[key]);
        if (isRecord(found) && isRecord(entry)) mergeApplied(found, entry);
        else present.push(entry);
      }
    } else if (isRecord(value)) {
      const inner: Record<string, unknown> = isRecord(target[name]) ? (target[name] as Record<string, unknown>) : {};
      target[name] = inner;
      mergeApplied(inner, value);
    } else target[name] = value;
  }
}

export function valueAt(document: unknown, path: string): unknown {
  let value = document;
  for (const step of JSON.parse(path) as unknown[]) value = stepInto(value, step);
  return value;
}

function stepInto(value: unknown, step: unknown): unknown {
  if (typeof step === 'string') return isRecord(value) ? value[step] : undefined;
  const [key, wanted] = Object.entries(step as object)[0]!;
  if (!Array.isArray(value)) return undefined;
  return value.find((entry) => (key === '' ? entry === wanted : isRecord(entry) && entry[key] === wanted));
}

/** Takes a field away, and what is empty without it. */
export function removePath(document: Record<string, unknown>, path: string) {
  const steps = JSON.parse(path) as unknown[];
  const last = steps.pop();
  const parents: unknown[] = [document];
  for (const step of steps) parents.push(stepInto(parents.at(-1), step));
  const remove = (parent: unknown, step: unknown, child: unknown) => {
    // By identity: what named it may be gone already.
    if (Array.isArray(parent) && parent.includes(child)) parent.splice(parent.indexOf(child), 1);
    else if (typeof step === 'string' && isRecord(parent)) delete parent[step];
  };
  remove(parents.at(-1), last, stepInto(parents.at(-1), last));
  // Upwards: an entry of a keyed list that only has its key left, and empty lists and objects, go as well.
  for (let depth = steps.length - 1; depth >= 0; depth--) {
    const child = parents[depth + 1];
    const step = steps[depth];
    const names = isRecord(child) ? Object.keys(child) : [];
    const hollow = Array.isArray(child) ? child.length === 0 : isRecord(child) && names.length === 0;
    if (!hollow) break;
    remove(parents[depth], step, child);
  }
}
