/**
 * NVIDIA's device plugin, simulated: the kubelet's real gRPC API on the kubelet's real socket, with GPUs that do not exist.
 *
 * It announces each GPU by UUID, answers an allocation with NVIDIA_VISIBLE_DEVICES as the real one does by default, and
 * registers again whenever the kubelet has started anew (which wipes the folder of sockets). Tests break a GPU by `setHealth`.
 */
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import {
  type Client,
  credentials,
  type GrpcObject,
  loadPackageDefinition,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceClientConstructor,
  type sendUnaryData,
  status,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { Report } from '../processes.ts';
import type { SimulatedGpu } from './gpus.ts';

export interface DevicePluginOptions {
  /** The kubelet's folder of sockets, as this process sees it. */
  readonly socketDir: string;
  readonly gpus: readonly SimulatedGpu[];
  readonly report: Report;
  readonly resourceName?: string;
}

export interface DevicePlugin {
  /** How often the kubelet has accepted us: 1, and one more after each of its restarts. */
  readonly registrations: number;
  /** UUIDs handed to containers so far, in the order of the kubelet's calls. */
  readonly allocations: readonly (readonly string[])[];
  setHealth(uuid: string, healthy: boolean): void;
  stop(): Promise<void>;
}

interface Device {
  readonly ID: string;
  readonly health: 'Healthy' | 'Unhealthy';
}
interface AllocateRequest {
  readonly container_requests: readonly { readonly devices_ids: readonly string[] }[];
}
interface AllocateResponse {
  readonly container_responses: readonly { readonly envs: Readonly<Record<string, string>> }[];
}
type Registrar = Client & {
  Register(request: object, deadline: { deadline: number }, done: (error: Error | null) => void): void;
};

const SOCKET = 'gpulease-nvidia.sock';
const MAX_REMEMBERED_ALLOCATIONS = 1000;

export async function startDevicePlugin(options: DevicePluginOptions): Promise<DevicePlugin> {
  const { socketDir, gpus, report, resourceName = 'nvidia.com/gpu' } = options;
  const api = v1beta1();
  const healthy = new Map(gpus.map((gpu) => [gpu.uuid, true]));
  const watchers = new Set<ServerWritableStream<object, { devices: Device[] }>>();
  const allocations: string[][] = [];
  let registrations = 0;
  let server: Server | undefined;
  let registeredWith = '';
  let lastProblem = '';

  const devices = (): Device[] => [...healthy].map(([ID, well]) => ({ ID, health: well ? 'Healthy' : 'Unhealthy' }));
  const service = {
    GetDevicePluginOptions: (_: unknown, done: sendUnaryData<object>) => done(null, {}),
    GetPreferredAllocation: (_: unknown, done: sendUnaryData<object>) => done({ code: status.UNIMPLEMENTED }),
    PreStartContainer: (_: unknown, done: sendUnaryData<object>) => done(null, {}),
    ListAndWatch(call: ServerWritableStream<object, { devices: Device[] }>) {
      watchers.add(call);
      call.on('cancelled', () => {
        watchers.delete(call);
        call.end();
      });
      call.write({ devices: devices() });
    },
    Allocate(call: ServerUnaryCall<AllocateRequest, AllocateResponse>, done: sendUnaryData<AllocateResponse>) {
      const asked = call.request.container_requests.map((request) => [...request.devices_ids]);
      const bad = asked.flat().find((uuid) => !healthy.get(uuid));
      if (bad !== undefined)
        return done({ code: status.FAILED_PRECONDITION, details: `${bad} is unknown or unhealthy` });
      allocations.push(...asked);
      allocations.splice(0, allocations.length - MAX_REMEMBERED_ALLOCATIONS);
      done(null, {
        container_responses: asked.map((uuids) => ({ envs: { NVIDIA_VISIBLE_DEVICES: uuids.join(',') } })),
      });
    },
  };

  const serve = async () => {
    server?.forceShutdown();
    watchers.clear();
    rmSync(join(socketDir, SOCKET), { force: true });
    const next = new Server();
    next.addService(api.DevicePlugin.service, service);
    await new Promise<void>((resolve, reject) => {
      next.bindAsync(`unix:${join(socketDir, SOCKET)}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
    server = next;
  };
  const register = async () => {
    const kubelet = new api.Registration(
      `unix:${join(socketDir, 'kubelet.sock')}`,
      credentials.createInsecure(),
    ) as unknown as Registrar;
    try {
      await new Promise<void>((resolve, reject) => {
        const request = { version: 'v1beta1', endpoint: SOCKET, resource_name: resourceName, options: {} };
        kubelet.Register(request, { deadline: Date.now() + 5000 }, (error) => (error ? reject(error) : resolve()));
      });
      registrations++;
    } finally {
      kubelet.close();
    }
  };

  /** One look: a kubelet socket that we do not know yet means a kubelet that does not know us. */
  const look = async () => {
    const socket = identityOf(join(socketDir, 'kubelet.sock'));
    if (socket === '' || socket === registeredWith) return;
    try {
      await serve();
      await register();
      registeredWith = socket;
      lastProblem = '';
    } catch (error) {
      // The socket is there a moment before the kubelet answers on it, and after it has died: the next look tries again.
      const problem = (error as Error).message;
      if (lastProblem !== '' && problem !== lastProblem) report(`simulated device plugin: ${problem}`);
      lastProblem = problem;
    }
  };
  let looking: Promise<void> | undefined;
  const timer = setInterval(() => {
    looking ??= look().finally(() => {
      looking = undefined;
    });
  }, 100);
  timer.unref();

  return {
    get registrations() {
      return registrations;
    },
    get allocations() {
      return allocations;
    },
    setHealth(uuid, well) {
      if (!healthy.has(uuid)) throw new Error(`no GPU ${uuid} here; there are: ${[...healthy.keys()].join(', ')}`);
      healthy.set(uuid, well);
      for (const watcher of watchers) watcher.write({ devices: devices() });
    },
    async stop() {
      clearInterval(timer);
      await looking;
      server?.forceShutdown();
      server = undefined;
    },
  };
}

function identityOf(file: string): string {
  try {
    const { ino, ctimeMs } = statSync(file);
    return `${ino} ${ctimeMs}`;
  } catch {
    return ''; // no kubelet there at the moment
  }
}

function v1beta1(): {
  readonly Registration: ServiceClientConstructor;
  readonly DevicePlugin: ServiceClientConstructor;
} {
  const file = join(import.meta.dirname, 'device-plugin.proto');
  const loaded = loadPackageDefinition(loadSync(file, { keepCase: true, defaults: true })) as GrpcObject;
  return loaded.v1beta1 as unknown as {
    Registration: ServiceClientConstructor;
    DevicePlugin: ServiceClientConstructor;
  };
}
