/** Where a resource lives on an API server, and how much of it an answer holds. */
import type { ObjectKey, Resource } from './types.ts';

/** As `Accept`: the whole object goes both ways otherwise, and is read by nobody. Whoever cannot answer so answers as always. */
export const metadataAlone = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json';

export function apiVersionOf(resource: Resource): string {
  return resource.group ? `${resource.group}/${resource.version}` : resource.version;
}

/** The path of a collection: of one namespace, or of all when `namespace` is absent. */
export function collectionPath(resource: Resource, namespace?: string): string {
  const root = resource.group ? `/apis/${resource.group}/${resource.version}` : `/api/${resource.version}`;
  if (namespace === undefined) return `${root}/${resource.plural}`;
  if (!resource.namespaced) throw new TypeError(`${resource.plural} have no namespace, but ${namespace} was given`);
  return `${root}/namespaces/${segment(namespace, 'namespace')}/${resource.plural}`;
}

/** The path of one object, or of a subresource of it. */
export function objectPath(resource: Resource, key: ObjectKey, subresource?: string): string {
  if (resource.namespaced && key.namespace === undefined)
    throw new TypeError(`${resource.plural} ${key.name}: a namespace is needed`);
  const path = `${collectionPath(resource, resource.namespaced ? key.namespace : undefined)}/${segment(key.name, 'name')}`;
  return subresource ? `${path}/${subresource}` : path;
}

/** An empty name would turn one object into its collection, and a dotted one into another path. */
function segment(value: string, what: string): string {
  if (value === '' || value === '.' || value === '..') throw new TypeError(`not a ${what}: '${value}'`);
  return encodeURIComponent(value);
}

export function withQuery(path: string, query: Readonly<Record<string, string | number | undefined>>): string {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== '') params.set(name, String(value));
  }
  const text = params.toString();
  return text ? `${path}?${text}` : path;
}

/** `namespace/name`, or just the name of a cluster-scoped object. */
export function keyText(key: ObjectKey): string {
  return key.namespace === undefined ? key.name : `${key.namespace}/${key.name}`;
}

export function parseKey(text: string): ObjectKey {
  const slash = text.indexOf('/');
  return slash < 0 ? { name: text } : { namespace: text.slice(0, slash), name: text.slice(slash + 1) };
}

export function keyOf(object: {
  readonly metadata: { readonly name: string; readonly namespace?: string };
}): ObjectKey {
  const { namespace, name } = object.metadata;
  return namespace === undefined ? { name } : { namespace, name };
}
