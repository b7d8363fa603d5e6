"""A stand-in for W&B's server on this machine, for tests of the unmodified client and commands.

It serves three protocols. GraphQL (POST /graphql) carries everything that has a name: runs, sweeps,
agents, artifacts. The file stream (POST /files/ENTITY/PROJECT/RUN/file_stream) carries a run's
history, summary, console and exit code as lines with offsets. Storage (PUT and GET /storage/...)
carries bytes, at addresses that GraphQL hands out. State lives in memory, behind one lock.

A sweep's config is sent as YAML. Written from what wandb 0.31.0 sends.
"""

import base64
import gzip
import hashlib
import itertools
import json
import random
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import graphql
import yaml

# --- GraphQL ----------------------------------------------------------------------------------


class Refused(Exception):
    """An answer with an error: the message, and its HTTP status."""

    def __init__(self, message, status=200):
        super().__init__(message)
        self.status = status


class Query:
    """A GraphQL document: its operation, and what that selects from a tree of dictionaries."""

    def __init__(self, text, variables):
        definitions = graphql.parse(text).definitions
        self.fragments = {d.name.value: d for d in definitions if d.kind == "fragment_definition"}
        (self.operation,) = (d for d in definitions if d.kind == "operation_definition")
        self.name = self.operation.name.value
        self.variables = {
            d.variable.name.value: d.default_value and self._value(d.default_value)
            for d in self.operation.variable_definitions or ()
        } | variables

    def _value(self, node):
        return graphql.value_from_ast_untyped(node, getattr(self, "variables", None))

    def answer(self, root, unknown):
        """The answer, from what the server has; fields that it lacks are added to `unknown`."""
        return self._select(root, self.operation, unknown)

    def _select(self, node, parent, unknown):
        # Values of a node may be functions of a field's arguments.
        if node is None or isinstance(node, list):
            return node and [self._select(n, parent, unknown) for n in node]
        found = {}
        for f in parent.selection_set.selections:
            name = f.name.value
            if any(
                self._value(d.arguments[0].value) != (d.name.value == "include")
                for d in f.directives or ()
            ):
                continue
            if f.kind == "fragment_spread":
                found |= self._select(node, self.fragments[name], unknown)
            else:
                if name not in node and name not in NULL:
                    unknown.add(f"{node.get('__typename', '?')}.{name}")
                value = node.get(name)
                if callable(value):
                    given = {a.name.value: self._value(a.value) for a in f.arguments or ()}
                    value = value(**given)
                inner = self._select(value, f, unknown) if f.selection_set else value
                found[f.alias.value if f.alias else name] = inner
        return found


# Asked for and answered null: this server has nothing to say about them.
NULL = (
    "commit", "controller", "description", "email", "historyStep", "scheduler",
    "systemMetrics", "uploadHeaders", "uploadMultipartUrls",
)  # fmt: skip


def node(kind, of=None, names=""):
    """A GraphQL object: its type, and attributes of `of` as "graphql=python" or one name."""
    pairs = [pair.partition("=") for pair in names.split()]
    return {"__typename": kind} | {name: getattr(of, other or name) for name, _, other in pairs}


def connection(items, node=None, after=None, first=None, **_):
    """One page of items, as GraphQL lists them; a cursor is the number of items before the next."""
    start = int(after or 0)
    stop = min(len(items), start + (first or len(items)))
    page = {"__typename": "PageInfo", "endCursor": str(stop), "hasNextPage": stop < len(items)}
    edges = [{"cursor": str(i + 1), "node": node(items[i])} for i in range(start, stop)]
    return {"totalCount": len(items), "pageInfo": page, "edges": edges}


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- What the server remembers ----------------------------------------------------------------


@dataclass
class Run:
    """A run. `lines` holds the file stream by file name; `raw_config` has the 'value' wrappers."""

    id: str
    entity: str
    project: str
    raw_config: dict = field(default_factory=dict)
    lines: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    tags: list = field(default_factory=list)
    display_name: str | None = None
    notes: str | None = None
    state: str = "running"
    sweep: str | None = None
    exit_code: int | None = None
    preempting: bool = False
    stop: bool = False  # set by a test: the agent is told to stop this run
    created: str = field(default_factory=now)

    @property
    def config(self):
        return {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}

    @property
    def history(self):
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self):
        lines = self.lines.get("wandb-summary.json")
        return json.loads(lines[-1]) if lines else {}


@dataclass
class Sweep:
    """A sweep. A grid's points are handed out in order, without those that a run holds already."""

    id: str
    entity: str
    project: str
    text: str
    runs: list = field(default_factory=list)
    state: str = "PENDING"
    display_name: str | None = None
    created: str = field(default_factory=now)
    requeued: list = field(default_factory=list)

    @property
    def config(self):
        return yaml.safe_load(self.text)

    @property
    def parameters(self):
        return self.config["parameters"]

    def gives_up(self, run):
        """Whether hyperband stops a run: at its first bracket, unless it is the best there."""
        spec = self.config.get("early_terminate")
        if not spec:
            return False
        metric, at = self.config["metric"]["name"], spec["min_iter"]
        reached = {r.id: [row[metric] for row in r.history if metric in row] for r in self.runs}
        reached = {name: min(values[:at]) for name, values in reached.items() if len(values) >= at}
        return run.id in reached and reached[run.id] > min(reached.values())

    def points(self):
        """Every point of the grid: names sorted, the last one running fastest."""
        axes = {name: values(spec) for name, spec in sorted(self.parameters.items())}
        for point in itertools.product(*axes.values()):
            yield dict(zip(axes, point, strict=True))

    def next_point(self):
        if len(self.runs) >= self.config.get("run_cap", float("inf")):
            return None
        if self.config["method"] != "grid":  # a search draws, however cleverly
            return {name: drawn(spec, len(self.runs)) for name, spec in self.parameters.items()}
        taken = [run.config.items() for run in self.runs]
        return next((p for p in self.points() if not any(p.items() <= t for t in taken)), None)


def values(spec):
    return spec["values"] if "values" in spec else [spec["value"]]


def drawn(spec, seed):
    """A value of a parameter, as a search draws one."""
    dice = random.Random(seed)
    return dice.uniform(spec["min"], spec["max"]) if "min" in spec else dice.choice(values(spec))


@dataclass
class Artifact:
    """One version. Its collection gives it an index when it is committed."""

    id: str
    type: str
    collection: "Collection"
    digest: str
    blobs: dict
    wanted: list  # aliases to take at the commit
    metadata: dict = field(default_factory=dict)
    description: str | None = None
    run_id: str | None = None
    manifest: dict = field(default_factory=dict)
    manifest_bytes: bytes = b""
    state: str = "PENDING"
    created: str = field(default_factory=now)

    name = property(lambda self: self.collection.name)
    version = property(lambda self: self.collection.index(self))
    aliases = property(lambda self: self.collection.aliases_of(self))

    @property
    def addresses(self):
        contents = self.manifest.get("contents", {})
        return {path: address(entry["digest"]) for path, entry in contents.items()}

    @property
    def files(self):
        return {path: self.blobs[name] for path, name in self.addresses.items()}


@dataclass
class Collection:
    """Versions under one name, and which of them each alias means."""

    entity: str
    project: str
    name: str
    members: list = field(default_factory=list)
    aliases: dict = field(default_factory=dict)

    def index(self, artifact):
        return next((i for i, a in enumerate(self.members) if a is artifact), None)

    def aliases_of(self, artifact):
        return sorted(alias for alias, a in self.aliases.items() if a is artifact)

    def add(self, artifact, aliases):
        if self.index(artifact) is None:
            self.members.append(artifact)
            self.aliases["latest"] = artifact
        self.aliases |= dict.fromkeys(aliases, artifact)

    def find(self, alias):
        if re.fullmatch(r"v\d+", alias):
            return self.members[int(alias[1:])] if int(alias[1:]) < len(self.members) else None
        return self.aliases.get(alias)


# --- The server --------------------------------------------------------------------------------


class Backend:
    """`with Backend() as backend:` a W&B server on 127.0.0.1; see the module's first lines.

    runs, sweeps by id (a run whose id another project has: by PROJECT/ID); artifacts in order of
    creation; collections by (entity, project, name);
    requests [(operation or "METHOD path", variables)]; strays: hosts that a client of
    `environment` tried to reach elsewhere; unknown: GraphQL fields asked for and answered null;
    views: workspaces that were saved, as they arrived; failures: the HTTP status with which an
    operation is refused, by its name; refused_types: types of artifacts that are refused; dies_at:
    which request, counted from 0, is the last one, if any, and gets no answer.
    """

    def __init__(self, entity="tester"):
        self.entity, self.lock, self.port = entity, threading.RLock(), 0
        self.runs, self.sweeps, self.artifacts, self.collections = {}, {}, [], {}
        self.agents, self.blobs, self.requests, self.strays = {}, {}, [], []
        self.unknown, self.failures, self.server = set(), {}, None
        self.views, self.refused_types, self.dies_at = [], [], None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Listen: on a free port the first time, on the same one after stop()."""
        self.server = Server(("127.0.0.1", self.port), Handler)
        self.server.backend = self
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        """Refuse connections from now on; keep what has arrived."""
        server, self.server = self.server, None
        if server:
            server.shutdown()
            server.server_close()

    def environment(self, home):
        """Variables for a child process whose wandb talks to this server only.

        Everything wandb writes lies under `home`: give agents that run at once a home each.
        Requests to any other host meet this server as their proxy, are refused and noted in
        `strays`. With a dead server each step gives up after one retry a second later
        (`WANDB_X_<part>_RETRY_...`; any `x_` setting can be given so): measured, `artifact.wait()`
        raises after 1 s and `run.finish()` returns after 3 s. Whole seconds of at least 1 and
        at least one retry: wandb cuts 0.5 to 0, and takes 0 for its default (6 s and 19 s with
        2 retries; without a limit on them over a minute).
        """
        parts = [f"WANDB_X_{part}" for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")]
        waits = {f"{p}_RETRY_WAIT_{end}_SECONDS": "1" for p in parts for end in ("MIN", "MAX")}
        retries = {f"{p}_RETRY_MAX": "1" for p in parts} | {
            f"{p}_TIMEOUT_SECONDS": "10" for p in parts
        }
        names = "CACHE_DIR=cache CONFIG_DIR=config DATA_DIR=data ARTIFACT_DIR=artifacts DIR=."
        folders = dict(name.split("=") for name in names.split())
        proxies = {f"{scheme}_PROXY": self.url for scheme in ("HTTP", "HTTPS")}
        proxies["NO_PROXY"] = "127.0.0.1,localhost"
        return {
            "HOME": str(home),
            "NETRC": str(Path(home, "netrc")),
            **{f"WANDB_{name}": str(Path(home, folder)) for name, folder in folders.items()},
            **proxies,
            **{name.lower(): value for name, value in proxies.items()},
            **waits,
            **retries,
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_DISABLE_CODE": "true",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
            "WANDB_INIT_TIMEOUT": "20",
        }

    # The tree that queries walk: one method per GraphQL type -------------------------------------

    def root(self):
        """Every query and mutation, by its field's name."""

        def mutation(name):
            return lambda input: getattr(self, f"do_{name}")(**input)

        user = node("User", self, "username=entity entity")
        user |= {"id": "user", "flags": "{}", "teams": connection([])}
        return {
            **{name[3:]: mutation(name[3:]) for name in dir(self) if name.startswith("do_")},
            "viewer": user,
            "serverInfo": {"features": []},
            "project": self.project_node,
            "model": self.project_node,
            # The projects of an entity; of those asked for so far it has one.
            "models": lambda entityName=None, **page: connection(
                ["project"], lambda name: self.project_node(name, entityName), **page
            ),
            "artifact": lambda id: self.artifact_node(self.artifact(id)),
        }

    def project_node(self, name, entityName=None):
        project, entity = name, entityName or self.entity

        def collection(name):
            return self.collection_node(self.collections.get((entity, project, name)))

        def membership(name):
            name, _, alias = name.partition(":")
            found = self.collections.get((entity, project, name))
            artifact = found and found.find(alias or "latest")
            return artifact and self.membership_node(found, artifact)

        def runs(filters=None, order=None, **page):
            wanted = json.loads(filters or "{}").get("$and", [])
            here = [r for r in self.runs.values() if (r.entity, r.project) == (entity, project)]
            found = [r for r in here if all({"sweep": r.sweep} == w for w in wanted)]
            return connection(found, self.run_node, **page)

        return {
            "__typename": "Project",
            "isBenchmark": False,
            "id": f"project-{entity}-{name}",
            "internalId": "1",
            "name": name,
            "entityName": entity,
            "entity": {"id": f"entity-{entity}", "name": entity},
            "readOnly": False,
            "createdAt": now(),
            "bucket": lambda name, missingOk=False: self.run_node(self.run(name, project)),
            "run": lambda name: self.run_node(self.run(name, project)),
            "runs": runs,
            "runCount": lambda filters=None: runs(filters)["totalCount"],
            "sweep": lambda sweepName: self.sweep_node(self.sweeps.get(sweepName)),
            "artifact": lambda name: (found := membership(name)) and found["artifact"](),
            "artifactCollectionMembership": membership,
            "artifactCollection": collection,
        }

    def run(self, name, project):
        found = self.runs.get(f"{project}/{name}") or self.runs.get(name)
        return found if found and found.project == project else None

    def run_node(self, run):
        if run is None:
            return None
        history, rows = run.lines.get("wandb-history.jsonl", []), run.history
        keys = {k: {"typeCounts": [{"type": "number", "count": 1}]} for row in rows for k in row}

        def page_of_history(minStep=0, maxStep=None, samples=None):
            end = float("inf") if maxStep is None else maxStep
            return [json.dumps(r) for r in rows if minStep <= r["_step"] < end]

        own = run.raw_config.get("_wandb", {})
        return node(
            "Run",
            run,
            "name=id sweepName=sweep group jobType=job_type tags state exitcode=exit_code notes "
            "stopped=stop shouldStop=stop createdAt=created heartbeatAt=created",
        ) | {
            "id": f"run-{run.id}",
            "projectId": "1",
            "displayName": run.display_name or run.id,
            "config": json.dumps(run.raw_config),
            # With the key `t` (telemetry) in it, a client takes the run for one that has begun.
            "wandbConfig": lambda keys: json.dumps(
                {k: v for k, v in own.get("value", {}).items() if k in keys}
            ),
            "summaryMetrics": json.dumps(run.summary),
            "failed": run.state == "failed",
            "running": run.state == "running",
            "readOnly": False,
            "user": {"name": self.entity, "username": self.entity},
            "project": lambda: self.project_node(run.project, run.entity),
            "historyLineCount": len(history),
            "eventsLineCount": 0,
            "logLineCount": len(run.lines.get("output.log", [])),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": "[]",
            "historyKeys": {"sets": [], "lastStep": len(rows) - 1, "keys": keys},
            "history": page_of_history,
            "parquetHistory": lambda liveKeys: {"parquetUrls": [], "liveData": rows},
        }

    def sweep_node(self, sweep):
        if sweep is None:
            return None
        config = sweep.config
        metric = config.get("metric", {})
        scores = [r.summary[metric["name"]] for r in sweep.runs if metric.get("name") in r.summary]
        best = max if metric.get("goal") == "maximize" else min
        return node(
            "Sweep",
            sweep,
            "name=id state config=text createdAt=created updatedAt=created heartbeatAt=created",
        ) | {
            "id": f"sweep-{sweep.id}",
            "displayName": sweep.display_name or config.get("name"),
            "method": config["method"],
            "bestLoss": best(scores, default=None),
            "earlyStopJobRunning": False,
            "runCount": len(sweep.runs),
            "runCountExpected": len(list(sweep.points())) if config["method"] == "grid" else None,
            "runs": lambda **page: connection(sweep.runs, self.run_node, **page),
            "project": lambda: self.project_node(sweep.project, sweep.entity),
        }

    def collection_node(self, c):
        if c is None:
            return None
        return node("ArtifactSequence", c, "name") | {
            "project": lambda: self.project_node(c.project, c.entity),
            "latestArtifact": lambda: self.artifact_node(c.members[-1] if c.members else None),
            "artifactMembership": lambda aliasName: (
                (found := c.find(aliasName)) and self.membership_node(c, found)
            ),
        }

    def alias_node(self, collection, alias):
        return node("ArtifactAlias") | {
            "id": f"{collection.name}-{alias}",
            "alias": alias,
            "artifactCollection": lambda: self.collection_node(collection),
        }

    def membership_node(self, collection, artifact):
        return node("ArtifactCollectionMembership", artifact, "createdAt=created") | {
            "id": f"{collection.name}-{artifact.id}",
            "versionIndex": collection.index(artifact),
            "aliases": [self.alias_node(collection, a) for a in collection.aliases_of(artifact)],
            "artifactCollection": lambda: self.collection_node(collection),
            "artifact": lambda: self.artifact_node(artifact),
            "files": lambda **page: connection(
                list(artifact.addresses.items()),
                lambda file: self.file_node(file[0], f"blobs/{file[1]}"),
                **page,
            ),
        }

    def artifact_node(self, a):
        if a is None:
            return None
        return node(
            "Artifact",
            a,
            "id versionIndex=version description state digest commitHash=id createdAt=created "
            "updatedAt=created",
        ) | {
            "artifactSequence": lambda: self.collection_node(a.collection),
            "artifactType": {"name": a.type},
            "metadata": json.dumps(a.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "size": sum(map(len, a.files.values())) if a.state == "COMMITTED" else 0,
            "fileCount": len(a.manifest.get("contents", {})),
            "aliases": [self.alias_node(a.collection, alias) for alias in a.aliases],
            "currentManifest": lambda: {"file": self.manifest_file(a)},
        }

    def file_node(self, name, path):
        """A file by its path in storage: the same address takes it and gives it back."""
        url = f"{self.url}/storage/{quote(path)}"
        places = {"id": path, "storagePath": path, "directUrl": url, "uploadUrl": url}
        return node("File") | places | {"name": name}

    def manifest_file(self, artifact):
        return self.file_node("wandb_manifest.json", f"manifests/{artifact.id}")

    def artifact(self, id):
        return next((a for a in self.artifacts if a.id == id), None)

    # Mutations: do_NAME answers the field NAME ---------------------------------------------------

    def do_upsertView(self, **view):
        self.views.append(view)
        kept = {"displayName": "", "description": "", "spec": "{}", "type": ""} | view
        project = self.project_node(view.get("projectName", "project"), view.get("entityName"))
        kept |= {"id": f"view-{len(self.views)}", "name": view.get("name") or "view"}
        kept |= {"project": project, "user": {"username": "tester"}}
        return {"view": kept | {"updatedAt": now(), "createdAt": now()}, "inserted": True}

    def do_upsertBucket(self, id=None, name=None, modelName=None, entityName=None, **given):
        """Create or change a run. A sweep that its project lacks is refused, as W&B does."""
        name = name or id.removeprefix("run-")
        if given.get("sweep"):
            sweep = self.sweeps.get(given["sweep"])
            if sweep is None or sweep.project != (modelName or sweep.project):
                raise Refused(f"sweep {given['sweep']} not found", 404)
        entity, project = entityName or self.entity, modelName or "uncategorized"
        run = self.run(name, project) if modelName else self.runs.get(name)
        if inserted := run is None:
            key = f"{project}/{name}" if name in self.runs else name
            run = self.runs[key] = Run(name, entity, project)
        if given.get("config"):
            run.raw_config = json.loads(given["config"])
        names = "groupName=group jobType=job_type displayName=display_name"
        for pair in f"{names} tags=tags notes=notes sweep=sweep state=state".split():
            key, attribute = pair.split("=")
            if given.get(key) is not None:
                setattr(run, attribute, given[key])
        if run.sweep and all(r is not run for r in self.sweeps[run.sweep].runs):
            self.sweeps[run.sweep].runs.append(run)
        return {"bucket": self.run_node(run), "inserted": inserted}

    def do_createRunFiles(self, runName, files, **_):
        nodes = [self.file_node(f, f"runs/{runName}/{f}") for f in files]
        return {"runID": f"run-{runName}", "uploadHeaders": [], "files": nodes}

    def do_upsertSweep(self, id=None, config=None, entityName=None, projectName=None, **given):
        """Create a sweep, with the runs that its filter names (`wandb sweep -R`), or change one."""
        if id:
            sweep = self.sweeps[id.removeprefix("sweep-")]
        else:
            name = f"sweep{len(self.sweeps):03d}"
            entity, project = entityName or self.entity, projectName or "uncategorized"
            sweep = self.sweeps[name] = Sweep(name, entity, project, config)
            if given.get("priorRunsFilters"):
                (wanted,) = json.loads(given["priorRunsFilters"]).values()  # of "$or"
                sweep.runs = [self.run(run["name"], project) for run in wanted]
                for run in sweep.runs:
                    run.sweep = name
        sweep.text = config or sweep.text
        sweep.state = given.get("state") or sweep.state
        sweep.display_name = given.get("displayName") or sweep.display_name
        return {"sweep": self.sweep_node(sweep), "configValidationWarnings": []}

    def do_createAgent(self, sweep, **_):
        agent = f"agent{len(self.agents):03d}"
        self.agents[agent] = sweep
        return {"agent": {"id": agent, "name": agent}}

    def do_agentHeartbeat(self, id, runState=None, **_):
        """The next command for the agent: run the next point, stop a run, or exit."""
        sweep = self.sweeps[self.agents[id]]
        running = [name for name, alive in json.loads(runState or "{}").items() if alive]
        for name in running:
            self.runs[name].stop |= sweep.gives_up(self.runs[name])
        commands = [{"type": "stop", "run_id": run} for run in running if self.runs[run].stop]
        if not running:
            commands = [{"type": "exit"} if sweep.state == "FINISHED" else self.next_run(sweep)]
        return {"agent": {"id": id}, "commands": json.dumps(commands)}

    def next_run(self, sweep):
        if sweep.requeued:
            run = sweep.requeued.pop(0)
            run.state = "running"
        else:
            point = sweep.next_point()
            if point is None:
                sweep.state = "FINISHED"
                return {"type": "exit"}
            name = f"{sweep.id}-{len(sweep.runs):03d}"
            run = Run(name, sweep.entity, sweep.project, sweep=sweep.id)
            run.raw_config = {k: {"value": v} for k, v in point.items()}
            self.runs[name] = run
            sweep.runs.append(run)
            sweep.state = "RUNNING"
        # As the server does: of a run that is queued again the whole config, the client's private
        # part included.
        args, program = run.raw_config, sweep.config.get("program")
        return {"type": "run", "run_id": run.id, "args": args, "program": program}

    def do_createArtifact(
        self, artifactTypeName, digest, entityName, projectName, aliases=None, **given
    ):
        """A version to be filled and committed, or the one that has these contents already."""
        if artifactTypeName in self.refused_types:
            raise Refused(f"no artifacts of type {artifactTypeName}", 403)
        names = given.get("artifactCollectionNames") or [given["artifactCollectionName"]]
        key = (entityName or self.entity, projectName, names[0])
        collection = self.collections.setdefault(key, Collection(*key))
        wanted = [a["alias"] for a in aliases or []]
        same = [a for a in collection.members if a.digest == digest]
        if same:
            collection.add(same[0], wanted)
            return {"artifact": self.artifact_node(same[0])}
        id = f"artifact{len(self.artifacts):03d}"
        artifact = Artifact(id, artifactTypeName, collection, digest, self.blobs, wanted)
        artifact.run_id, artifact.description = given.get("runName"), given.get("description")
        artifact.metadata = json.loads(given.get("metadata") or "{}")
        self.artifacts.append(artifact)
        return {"artifact": self.artifact_node(artifact)}

    def do_createArtifactManifest(self, artifactID, **_):
        file = self.manifest_file(self.artifact(artifactID))
        return {"artifactManifest": {"id": f"manifest-{artifactID}", "file": file}}

    def do_createArtifactFiles(self, artifactFiles, **_):
        """The upload address of each file; none for contents that are stored already."""

        def node(file):
            name = address(file["md5"])
            answer = self.file_node(file["name"], f"blobs/{name}")
            if name in self.blobs:
                answer["uploadUrl"] = None
            return answer | {"artifact": {"id": file["artifactID"]}}

        return {"files": connection(artifactFiles, node)}

    def do_commitArtifact(self, artifactID):
        """Commit a version, all files of whose manifest must have arrived."""
        artifact = self.artifact(artifactID)
        artifact.manifest = json.loads(artifact.manifest_bytes)
        lost = [path for path, name in artifact.addresses.items() if name not in self.blobs]
        if lost:
            raise Refused(f"files never uploaded: {lost}", 400)
        artifact.state = "COMMITTED"
        artifact.collection.add(artifact, artifact.wanted)
        return {"artifact": self.artifact_node(artifact)}

    def do_useArtifact(self, artifactID, **_):
        return {"artifact": self.artifact_node(self.artifact(artifactID))}

    # The other two protocols ---------------------------------------------------------------------

    def file_stream(self, run, body):
        """Store lines at their offsets: lines that are sent again replace themselves."""
        for name, chunk in (body.get("files") or {}).items():
            lines, offset = run.lines.setdefault(name, []), chunk.get("offset", 0)
            lines[offset : offset + len(chunk["content"])] = chunk["content"]
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body.get("exitcode", 0)
            run.state = "failed" if run.exit_code else "finished"
            if run.exit_code and run.preempting:
                run.state, run.preempting = "preempted", False
                if run.sweep:
                    self.sweeps[run.sweep].requeued.append(run)
        return {"stopped": True} if run.stop else {}

    def store(self, path, body):
        """Bytes sent to an address that file_node gave: of a run, a manifest, or by their md5."""
        kind, _, name = path.partition("/")
        if kind == "runs":
            run, _, name = name.partition("/")
            self.runs[run].files[name] = body
        elif kind == "manifests":
            self.artifact(name).manifest_bytes = body
        elif name == address(digest(body)):
            self.blobs[name] = body
        else:
            raise Refused(f"md5 {digest(body)} sent as {name}", 400)
        return {}

    def stored(self, path):
        kind, _, name = path.partition("/")
        return self.artifact(name).manifest_bytes if kind == "manifests" else self.blobs[name]


def digest(body):
    """The md5 as W&B writes it, base64."""
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def address(digest):
    """A digest as a path's last part: without base64's slashes."""
    return digest.translate(str.maketrans("+/", "-_"))


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, one request a connection, so that a stopped server answers no request."""

    def log_message(self, *_):
        pass

    def body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, status, data=b"{}"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self):
        backend, body = self.server.backend, self.body()
        path = unquote(urlsplit(self.path).path)
        query, operation, variables = None, f"{self.command} {path}", None
        if path == "/graphql":
            sent = json.loads(body)
            variables = sent.get("variables") or {}
            query = Query(sent["query"], dict(variables))
            operation = sent.get("operationName") or query.name
        with backend.lock:
            backend.requests.append((operation, variables))
            dies = len(backend.requests) - 1 == backend.dies_at
        if dies:
            return backend.stop()
        if status := backend.failures.get(operation):
            return self.reply(status, b'{"errors": [{"message": "as the test asked"}]}')
        try:
            with backend.lock:
                data = self.route(backend, path, body, query)
            self.reply(200, data if isinstance(data, bytes) else json.dumps(data).encode())
        except Refused as error:
            message = {"errors": [{"message": str(error)}], "data": None}
            self.reply(error.status, json.dumps(message).encode())

    def route(self, backend, path, body, query):
        if query:
            return {"data": query.answer(backend.root(), backend.unknown)}
        if path.endswith("/file_stream"):
            project, name = path.split("/")[-3:-1]
            return backend.file_stream(backend.run(name, project), json.loads(body))
        if path.startswith("/storage/"):
            name = path.removeprefix("/storage/")
            return backend.store(name, body) if self.command == "PUT" else backend.stored(name)
        raise Refused(f"no such path {path}", 404)

    def do_CONNECT(self):
        self.server.backend.strays.append(self.path)
        self.reply(403)

    do_GET = do_POST = do_PUT = answer


class Server(ThreadingHTTPServer):
    """With room for the connections that several agents open in one moment."""

    daemon_threads, request_queue_size = True, 128
