/**
 * Kubeconfigs as most have them, read here: certificates, tokens, files that hold them, the account of a pod. What few have (a
 * plugin, a proxy, an auth provider) is left to client-node, which takes 40 MB of memory and half a second to load.
 */
import { readFileSync } from 'node:fs';
import type { RequestOptions } from 'node:https';
import { createRequire } from 'node:module';
import { isIPv6 } from 'node:net';
import { dirname, resolve } from 'node:path';
import type { KubeConfig } from '@kubernetes/client-node';
import { load as loadYaml } from 'js-yaml';

/** The cluster that is current, in client-node's words. */
export interface ConfiguredCluster {
  readonly server: string;
  readonly caFile?: string;
  readonly caData?: string;
  readonly skipTLSVerify?: boolean;
  readonly tlsServerName?: string;
  readonly proxyUrl?: string;
}

/** client-node's KubeConfig is one. */
export interface LoadedConfig {
  getCurrentCluster(): ConfiguredCluster | null;
  /** Sets the certificates and headers with which requests are made. Reads the files that hold them anew. */
  applyToHTTPSOptions(options: RequestOptions): Promise<void>;
}

type ClientNode = typeof import('@kubernetes/client-node');
/** Loaded when it is first needed. */
export const clientNode = (): ClientNode => createRequire(import.meta.url)('@kubernetes/client-node') as ClientNode;

const account = '/var/run/secrets/kubernetes.io/serviceaccount';

interface User {
  readonly token?: string;
  readonly tokenFile?: string;
  readonly certificate?: Material;
  readonly key?: Material;
  readonly username?: string;
  readonly password?: string;
  readonly impersonate?: string;
}
interface Material {
  readonly file?: string;
  readonly data?: string;
}

/** Of the pod in which this runs. https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ */
export function inClusterConfig(env: NodeJS.ProcessEnv, folder = account): LoadedConfig {
  const { KUBERNETES_SERVICE_HOST: host = '', KUBERNETES_SERVICE_PORT: port = '443' } = env;
  const cluster = {
    server: `https://${isIPv6(host) ? `[${host}]` : host}:${port}`,
    caFile: `${folder}/ca.crt`,
    skipTLSVerify: false,
  };
  return configOf(cluster, { tokenFile: `${folder}/token` });
}

/** `folder`: paths in it are relative to this one. */
export function parseKubeconfig(text: string, folder?: string): LoadedConfig {
  return plainConfig(record(loadYaml(text)), folder) ?? throughClientNode(text, folder);
}

export function readKubeconfig(path: string): LoadedConfig {
  return parseKubeconfig(readFileSync(path, 'utf8'), dirname(path));
}

type Json = Readonly<Record<string, unknown>>;
const record = (value: unknown): Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : {};
const text = (value: unknown): string | undefined => (typeof value === 'string' && value !== '' ? value : undefined);

/** What is read of a cluster and of a user; whoever has something else is not plain. */
const clusterFields = [
  'server',
  'certificate-authority',
  'certificate-authority-data',
  'insecure-skip-tls-verify',
  'tls-server-name',
  'extensions',
];
const userFields = [
  'client-certificate',
  'client-certificate-data',
  'client-key',
  'client-key-data',
  'token',
  'tokenFile',
  'username',
  'password',
  'as',
  'extensions',
];
const hasOnly = (value: Json, fields: readonly string[]): boolean =>
  Object.keys(value).every((field) => fields.includes(field) || value[field] === null);

/** Undefined: client-node knows what to do with it, or what to say about it. */
function plainConfig(document: Json, folder?: string): LoadedConfig | undefined {
  const named = (list: unknown, name: unknown, field: string): Json | undefined => {
    const found = Array.isArray(list) ? list.map(record).find((entry) => entry.name === name) : undefined;
    return found && record(found[field]);
  };
  const context = named(document.contexts, document['current-context'], 'context');
  const cluster = context && named(document.clusters, context.cluster, 'cluster');
  const user = context && (context.user === undefined ? {} : named(document.users, context.user, 'user'));
  const server = text(cluster?.server);
  if (!cluster || !user || !server || !hasOnly(cluster, clusterFields) || !hasOnly(user, userFields)) return undefined;
  const path = (value: unknown) => {
    const given = text(value);
    return given === undefined || folder === undefined ? given : resolve(folder, given);
  };
  return configOf(
    {
      server: server.replace(/\/$/, ''),
      caFile: path(cluster['certificate-authority']),
      caData: text(cluster['certificate-authority-data']),
      skipTLSVerify: cluster['insecure-skip-tls-verify'] === true,
      tlsServerName: text(cluster['tls-server-name']),
    },
    {
      token: text(user.token),
      tokenFile: path(user.tokenFile),
      certificate: { file: path(user['client-certificate']), data: text(user['client-certificate-data']) },
      key: { file: path(user['client-key']), data: text(user['client-key-data']) },
      username: text(user.username),
      password: text(user.password),
      impersonate: text(user.as),
    },
  );
}

/** As kubectl has it, data is stronger than a file, and a token than the file of one. */
function configOf(cluster: ConfiguredCluster, user: User): LoadedConfig {
  const read = (material: Material = {}) =>
    material.data ? Buffer.from(material.data, 'base64') : material.file ? readFileSync(material.file) : undefined;
  return {
    getCurrentCluster: () => cluster,
    async applyToHTTPSOptions(options) {
      const headers: Record<string, string> = {};
      const token = user.token ?? (user.tokenFile && readFileSync(user.tokenFile, 'utf8'));
      if (token) headers.Authorization = `Bearer ${token.trim()}`;
      if (user.impersonate) headers['Impersonate-User'] = user.impersonate;
      options.headers = { ...(options.headers as Record<string, string>), ...headers };
      if (user.username) options.auth = `${user.username}:${user.password ?? ''}`;
      options.ca = read({ data: cluster.caData, file: cluster.caFile });
      options.cert = read(user.certificate);
      options.key = read(user.key);
      if (cluster.skipTLSVerify) options.rejectUnauthorized = false;
      if (cluster.tlsServerName) options.servername = cluster.tlsServerName;
    },
  };
}

function throughClientNode(source: string, folder?: string): KubeConfig {
  const config = new (clientNode().KubeConfig)();
  config.loadFromString(source);
  if (folder !== undefined) config.makePathsAbsolute(folder);
  // It knows `tokenFile` only in its in-cluster form; a kubeconfig may name one too, and it rotates.
  const users = (record(loadYaml(source)).users ?? []) as readonly { name?: string; user?: { tokenFile?: string } }[];
  for (const user of config.users) {
    const tokenFile = users.find(({ name }) => name === user.name)?.user?.tokenFile;
    if (!tokenFile || user.token) continue;
    const absolute = folder === undefined ? tokenFile : resolve(folder, tokenFile);
    Object.assign(user, { authProvider: { name: 'tokenFile', config: { tokenFile: absolute } } });
  }
  return config;
}
