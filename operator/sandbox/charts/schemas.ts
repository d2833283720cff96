/**
 * Schemas of Kubernetes' own kinds for kubeconform, made from the OpenAPI documents that each release carries in its Go module:
 * those that one usually downloads are a third party's, and elsewhere. Schemas of kinds of others come from their CRDs.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { loadAll } from 'js-yaml';
import { type BuildOptions, keepInCache } from '../tools/tools.ts';

/** The newest of each minor that the charts are for. */
export const schemaVersions = ['1.33.13', '1.34.4', '1.35.4', '1.36.3'] as const;

/** Whose kinds the charts may make, and where their CRDs lie in their modules. */
const others = [
  { module: 'sigs.k8s.io/gateway-api', version: 'v1.5.1', folder: 'config/crd/experimental' },
  {
    module: 'github.com/prometheus-operator/prometheus-operator',
    version: 'v0.85.0',
    folder: 'example/prometheus-operator-crd',
  },
  { module: 'github.com/cert-manager/cert-manager', version: 'v1.21.2', folder: 'deploy/crds' },
] as const;

type Schema = Record<string, unknown>;
interface Swagger {
  definitions: Record<
    string,
    Schema & { 'x-kubernetes-group-version-kind'?: { group: string; version: string; kind: string }[] }
  >;
}

const format = 3;

/** Templates for `-schema-location`, for one version of Kubernetes. */
export async function ensureSchemas(
  options: BuildOptions,
  signal?: AbortSignal,
): Promise<(version: string) => string[]> {
  const file = '{{.ResourceKind}}_{{.Group}}_{{.ResourceAPIVersion}}.json';
  const folders = new Map<string, string>();
  for (const version of schemaVersions) {
    const what = `schemas of Kubernetes v${version}`;
    const make = async (folder: string) => {
      options.report(`making ${what} (once per machine)`);
      await inModule(
        folder,
        'k8s.io/kubernetes',
        `v${version}`,
        (source) => {
          const swagger = JSON.parse(readFileSync(join(source, 'api/openapi-spec/swagger.json'), 'utf8')) as Swagger;
          writeKinds(swagger, folder);
        },
        signal,
      );
    };
    folders.set(
      version,
      await keepInCache({ what, cacheKey: `schemas-kubernetes-v${version}-${format}` }, options, make, signal),
    );
  }
  const key = createHash('sha256').update(JSON.stringify(others)).digest('hex').slice(0, 12);
  const what = 'schemas of Gateway API, Prometheus operator and cert-manager';
  const make = async (folder: string) => {
    options.report(`making ${what} (once per machine)`);
    for (const { module, version, folder: within } of others)
      await inModule(folder, module, version, (source) => writeCrds(join(source, within), folder), signal);
  };
  const ofOthers = await keepInCache({ what, cacheKey: `schemas-others-${key}-${format}` }, options, make, signal);
  return (version) => [join(folders.get(version)!, file), join(ofOthers, file)];
}

/** A module's files, for as long as `use` takes: Kubernetes' are a quarter of a gigabyte a version. */
async function inModule(
  near: string,
  module: string,
  version: string,
  use: (source: string) => void,
  signal?: AbortSignal,
): Promise<void> {
  const cache = `${near}.go`;
  try {
    const { stdout } = await promisify(execFile)('go', ['mod', 'download', '-json', `${module}@${version}`], {
      cwd: '/',
      env: { ...process.env, GOMODCACHE: cache, GOFLAGS: '-modcacherw', GOWORK: 'off' },
      signal,
    });
    use((JSON.parse(stdout) as { Dir: string }).Dir);
  } finally {
    rmSync(cache, { recursive: true, force: true });
  }
}

const refOf = (name: string) => `#/definitions/${name}`;

function writeKinds({ definitions }: Swagger, folder: string): void {
  const strict = Object.fromEntries(Object.entries(definitions).map(([name, schema]) => [name, closed(schema, name)]));
  for (const [name, schema] of Object.entries(definitions)) {
    for (const { group, version, kind } of schema['x-kubernetes-group-version-kind'] ?? []) {
      if (
        kind.endsWith('List') ||
        kind.endsWith('Options') ||
        ['DeleteOptions', 'WatchEvent', 'Status', 'APIGroup'].includes(kind)
      )
        continue;
      const needed = new Set<string>();
      collect(strict[name], strict, needed);
      const whole = {
        ...strict[name],
        definitions: Object.fromEntries([...needed].map((one) => [one, strict[one]])),
      };
      writeFileSync(join(folder, fileOf(kind, group, version)), JSON.stringify(whole));
    }
  }
}

const fileOf = (kind: string, group: string, version: string) =>
  `${kind.toLowerCase()}_${group || version}_${version}.json`;

/** Refuses fields that the kind does not have, and allows what the API server allows and OpenAPI 2 cannot say. */
function closed(schema: Schema, name: string): Schema {
  if (name === 'io.k8s.apimachinery.pkg.api.resource.Quantity') return { type: ['string', 'number'] };
  if (name === 'io.k8s.apimachinery.pkg.util.intstr.IntOrString') return { type: ['string', 'integer'] };
  if (/JSON(SchemaProps(OrBool|OrArray|OrStringArray))?$/.test(name) && !schema.properties) return {};
  const { 'x-kubernetes-group-version-kind': _, ...rest } = schema;
  return rest.properties && rest.additionalProperties === undefined ? { ...rest, additionalProperties: false } : rest;
}

function collect(schema: unknown, all: Record<string, Schema>, found: Set<string>): void {
  if (Array.isArray(schema)) for (const one of schema) collect(one, all, found);
  else if (schema && typeof schema === 'object')
    for (const [key, value] of Object.entries(schema)) {
      if (key !== '$ref' || typeof value !== 'string') collect(value, all, found);
      else {
        const name = value.slice(refOf('').length);
        if (found.has(name)) continue;
        found.add(name);
        collect(all[name], all, found);
      }
    }
}

interface Crd {
  kind?: string;
  spec?: {
    group: string;
    names: { kind: string };
    versions: { name: string; schema?: { openAPIV3Schema?: Schema } }[];
  };
}

function writeCrds(from: string, to: string): void {
  for (const file of readdirSync(from, { recursive: true, encoding: 'utf8' }).filter((one) => one.endsWith('.yaml')))
    for (const document of loadAll(readFileSync(join(from, file), 'utf8')) as (Crd | null)[]) writeCrd(document, to);
}

export function writeCrd(crd: Crd | null, folder: string): void {
  if (crd?.kind !== 'CustomResourceDefinition' || !crd.spec) return;
  const { group, names, versions } = crd.spec;
  for (const { name, schema } of versions) {
    if (!schema?.openAPIV3Schema) continue;
    const strict = closedV3(schema.openAPIV3Schema) as Schema & { properties?: Schema };
    // The metadata of a CRD's schema is open: the API server knows it by itself.
    if (strict.properties?.metadata) strict.properties.metadata = { type: 'object' };
    writeFileSync(join(folder, fileOf(names.kind, group, name)), JSON.stringify(strict));
  }
}

function closedV3(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closedV3);
  if (!schema || typeof schema !== 'object') return schema;
  const inner = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closedV3(value)])) as Schema;
  if (inner['x-kubernetes-int-or-string']) return { type: ['string', 'integer', 'number'] };
  const open = inner.additionalProperties !== undefined || inner['x-kubernetes-preserve-unknown-fields'];
  return inner.properties && inner.type === 'object' && !open ? { ...inner, additionalProperties: false } : inner;
}
