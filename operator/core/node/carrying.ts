/** What is gathered while one pod is translated. */
import type { SelfView } from './downward.ts';
import { type FieldRule, fieldRules } from './field-table.ts';
import { remoteObjectName } from './names.ts';
import type { Container, Pod } from './pod.ts';
import { sha256Hex } from './sha256.ts';
import type { TokenWish } from './token-wish.ts';

/** Something that stays behind, which its author should know. */
export interface Note {
  readonly reason: string;
  readonly message: string;
}

export interface Work {
  readonly pod: Pod;
  readonly view: SelfView;
  /** Names that are referred to, and whether nobody needs them. */
  readonly configMaps: Map<string, boolean>;
  readonly secrets: Map<string, boolean>;
  readonly annotations: Record<string, string>;
  /** Volumes that are not carried, and neither are their mounts. */
  readonly dropped: Set<string>;
  readonly tokens: TokenWish[];
  readonly notes: Note[];
  /** Name at the provider of the variables of Services. */
  readonly services: string;
  /** The container whose fields are being looked at. */
  container?: Container;
}

export const { carried, object, each, only, rewritten, leftBehind, refused } = fieldRules<Work>();

/** Refused, but where the provider lets this lease's pods use its host: then `carry` decides. */
export const hostOnly = (message: string, carry: FieldRule<Work>['carry'] = (value) => value): FieldRule<Work> => {
  const no = refused('HostAccessRefused', message);
  return {
    ...no,
    note: `${message}; carried where the provider trusts this account with its host`,
    carry: (value, place) => (place.work.view.hostAccess ? carry : no.carry)(value, place),
  };
};

/** The name at the provider of a ConfigMap or Secret that is referred to; it is sent along from now on. */
export function refer(kind: 'ConfigMap' | 'Secret', name: string, optional: boolean, work: Work): string {
  const found = kind === 'Secret' ? work.secrets : work.configMaps;
  found.set(name, optional && (found.get(name) ?? true));
  return remoteObjectName(kind, work.pod.metadata.namespace ?? '', name);
}

/** On the remote pod: values that downward API files show, by hash of the field. */
export const downwardAnnotation = (field: string): string => `gpulease.dev/downward-${sha256Hex(field).slice(0, 16)}`;
