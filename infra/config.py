"""`Stage`: what differs from one deployment to another, `dev` and `prod` and what the context overrides.

`app` reads it before anything is synthesized: a wrong value, an unknown name or a combination that can't
work is a fault, and all faults are told at once. Context is text on the command line (`-c min_tasks=4`) and
JSON in `cdk.json`; both are read here. What is served is in `headrace.toml` (`catalog`), not here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from infra.federation import Federation, federations_from

# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html#fargate-tasks-size
FARGATE_MEMORY_MIB: Final[Mapping[int, range]] = {
    256: range(512, 2048 + 1, 512),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
}
_REGION: Final = re.compile(r"(af|ap|ca|eu|il|me|mx|sa|us)-[a-z]+-\d", re.ASCII)
# 64 characters, since it is the first name of a certificate:
# https://docs.aws.amazon.com/acm/latest/APIReference/API_RequestCertificate.html
_DOMAIN: Final = re.compile(r"(?=.{4,64}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}", re.ASCII)
_ZONE: Final = re.compile(r"Z[A-Z0-9]{1,31}", re.ASCII)
_CERTIFICATE: Final = re.compile(r"arn:aws:acm:([a-z0-9-]+):\d{12}:certificate/[0-9a-f-]+", re.ASCII)
_ORIGIN: Final = re.compile(r"https://[a-z0-9.-]+(:\d+)?|http://localhost(:\d+)?", re.ASCII)
_URL: Final = re.compile(r"https://[^\s#*]+|http://localhost(:\d+)?/[^\s#*]*", re.ASCII)
# https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html
LOG_DAYS: Final = (7, 14, 30, 90, 180, 365, 400)
# The CDK's own context begins like this; every other name must be a field of `Stage`.
_CDK_KEYS: Final = ("@aws-cdk", "aws:cdk", "cdk-", "availability-zones:", "cli-")


class StageError(Exception):
    """The stage can't be deployed as configured; `faults` are all the reasons, a sentence each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Stage:
    """One deployment. Prices and reasons of the defaults are in docs/operations.md.

    `domain` is the API's public name; the load balancer's certificate has `origin.` in front of it.
    Its certificate is made in `hosted_zone_id`, or is `certificate_arn`, which covers both names.
    `zones` are the two availability zones, if not the first two by name, which API Gateway may not reach.
    """

    name: str
    region: str = "us-east-1"
    # HeadraceData: whether it outlives `cdk destroy` and refuses deletion.
    keep_state: bool = False
    mfa_required: bool = False
    threat_protection: str = "off"
    id_token_minutes: int = 15
    refresh_token_hours: int = 12
    callback_urls: tuple[str, ...] = ()
    logout_urls: tuple[str, ...] = ()
    federation: tuple[Federation, ...] = ()
    # the way in
    domain: str = ""
    hosted_zone_id: str = ""
    certificate_arn: str = ""
    cors_origins: tuple[str, ...] = ()
    requests_per_s: int = 50
    burst_requests: int = 100
    ip_requests_per_5_min: int = 3_000
    ip_submissions_per_5_min: int = 600
    # the tasks
    cpu: int = 512
    memory_mib: int = 1024
    min_tasks: int = 1
    max_tasks: int = 2
    streams_per_task: int = 500
    zones: tuple[str, ...] = ()
    nat_gateways: int = 1
    log_days: int = 14
    # where the image is built from; its Dockerfile is there
    image_directory: str = "."

    @property
    def needs_tls(self) -> bool:
        """Whether the load balancer must speak TLS: always in prod."""
        return self.name == "prod"

    @property
    def origin_domain(self) -> str:
        """The name in the load balancer's certificate; no DNS record is needed for it."""
        return f"origin.{self.domain}" if self.domain else ""


STAGES: Final[Mapping[str, Stage]] = {
    "dev": Stage(
        name="dev",
        callback_urls=("http://localhost:3000/callback",),
        logout_urls=("http://localhost:3000/",),
        cors_origins=("http://localhost:3000",),
    ),
    "prod": Stage(
        name="prod",
        keep_state=True,
        mfa_required=True,
        threat_protection="audit",
        requests_per_s=500,
        burst_requests=1_000,
        cpu=1024,
        memory_mib=4096,
        min_tasks=2,
        max_tasks=20,
        nat_gateways=2,
        log_days=90,
    ),
}


def stage_from(found: Mapping[str, Any]) -> Stage:
    """Read the stage that the context names (`stage`, default dev), with what else it overrides.

    Raises:
        StageError: All unknown names, bad values and combinations that can't work.
    """
    given = {key: value for key, value in found.items() if not key.startswith(_CDK_KEYS)}
    name = given.pop("stage", "dev")
    if name not in STAGES:
        raise StageError([f"stage must be one of {', '.join(STAGES)}, not {name!r}"])
    base = STAGES[name]
    names = [field.name for field in fields(Stage) if field.name != "name"]
    faults = [
        f"{key} is not a setting of a stage; settings are {', '.join(names)}"
        for key in sorted(given.keys() - set(names))
    ]
    values: dict[str, Any] = {}
    for key in sorted(given.keys() & set(names)):
        try:
            values[key] = _read(key, given[key], getattr(base, key))
        except ValueError as error:
            faults.append(f"{key} {error}")
    stage = replace(base, **values)
    faults += _faults(stage)
    if faults:
        raise StageError(faults)
    return stage


def _read(key: str, given: Any, default: Any) -> Any:
    """Bring a value of the context to the type of the field's default."""
    if key == "federation":
        return federations_from(given)
    if isinstance(default, bool):
        if given in (True, "true"):
            return True
        if given in (False, "false"):
            return False
        raise ValueError(f"must be true or false, not {given!r}")
    if isinstance(default, int):
        if isinstance(given, bool) or not re.fullmatch(r"\d{1,9}", str(given), re.ASCII):
            raise ValueError(f"must be a whole number, not {given!r}")
        return int(given)
    if isinstance(default, tuple):
        if isinstance(given, str) and given.startswith("["):
            try:
                given = json.loads(given)
            except ValueError:
                raise ValueError(f"must be a JSON list or texts separated by commas, not {given!r}") from None
        parts = given.split(",") if isinstance(given, str) else given
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"must be texts separated by commas, not {given!r}")
        return tuple(part.strip() for part in parts if part.strip())
    if not isinstance(given, str):
        raise ValueError(f"must be text, not {given!r}")  # noqa: TRY004 (all that is read here is a fault)
    return given.strip()


def _faults(stage: Stage) -> list[str]:
    return [*_place_faults(stage), *_people_faults(stage), *_task_faults(stage)]


def _place_faults(stage: Stage) -> list[str]:
    faults = []
    if not _REGION.fullmatch(stage.region):
        faults.append(f"region must be a Region such as eu-west-1, not {stage.region!r}")
    if stage.zones and not (
        len(set(stage.zones)) == len(stage.zones) == 2
        and all(re.fullmatch(re.escape(stage.region) + "[a-z]", zone) for zone in stage.zones)
    ):
        faults.append(
            f"zones must be two of {stage.region} such as {stage.region}a,{stage.region}b,"
            f" not {','.join(stage.zones)}"
        )
    if stage.needs_tls and not stage.domain:
        faults.append(
            f"domain is not set: {stage.name} speaks TLS to its load balancer, which takes a domain"
        )
    if stage.domain and not _DOMAIN.fullmatch(stage.domain):
        faults.append(
            f"domain must be a name of at most 64 characters such as api.example.com, not {stage.domain!r}"
        )
    if stage.domain and not stage.hosted_zone_id and not stage.certificate_arn:
        faults.append("domain needs hosted_zone_id (the certificate is made there) or certificate_arn")
    if not stage.domain and (stage.hosted_zone_id or stage.certificate_arn):
        faults.append("hosted_zone_id and certificate_arn mean nothing without domain")
    if stage.hosted_zone_id and not _ZONE.fullmatch(stage.hosted_zone_id):
        faults.append(f"hosted_zone_id must look like Z0123456789ABCDEFGHIJ, not {stage.hosted_zone_id!r}")
    certificate = _CERTIFICATE.fullmatch(stage.certificate_arn)
    if stage.certificate_arn and (certificate is None or certificate[1] != stage.region):
        faults.append(f"certificate_arn must be the ARN of an ACM certificate in {stage.region}")
    faults += [
        f"cors_origins: {origin!r} is not an origin such as https://app.example.com"
        for origin in stage.cors_origins
        if not _ORIGIN.fullmatch(origin)
    ]
    return faults


def _people_faults(stage: Stage) -> list[str]:
    faults = []
    if not stage.callback_urls:
        faults.append("callback_urls is not set: the web client must know where Cognito sends people back to")
    for key in ("callback_urls", "logout_urls"):
        faults += [
            f"{key}: {url!r} is neither an https URL nor one on http://localhost"
            for url in getattr(stage, key)
            if not _URL.fullmatch(url)
        ]
    if stage.threat_protection not in ("off", "audit", "enforced"):
        faults.append(f"threat_protection must be off, audit or enforced, not {stage.threat_protection!r}")
    # https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-the-id-token.html
    if not 5 <= stage.id_token_minutes <= 60:
        faults.append(f"id_token_minutes must be from 5 to 60, not {stage.id_token_minutes}")
    if not 1 <= stage.refresh_token_hours <= 24 * 3650:
        faults.append(f"refresh_token_hours must be from 1 to 87600, not {stage.refresh_token_hours}")
    return faults


def _task_faults(stage: Stage) -> list[str]:
    faults = []
    sizes = FARGATE_MEMORY_MIB.get(stage.cpu)
    if sizes is None:
        faults.append(f"cpu must be one of {', '.join(map(str, FARGATE_MEMORY_MIB))}, not {stage.cpu}")
    elif stage.memory_mib not in sizes:
        faults.append(
            f"memory_mib must be {sizes[0]} to {sizes[-1]} in steps of {sizes.step} with cpu {stage.cpu},"
            f" not {stage.memory_mib}"
        )
    if not 1 <= stage.min_tasks <= stage.max_tasks:
        faults.append(f"min_tasks must be from 1 to max_tasks ({stage.max_tasks}), not {stage.min_tasks}")
    if not 1 <= stage.nat_gateways <= 2:
        faults.append(f"nat_gateways must be 1 or 2, one a zone at most, not {stage.nat_gateways}")
    if stage.log_days not in LOG_DAYS:
        faults.append(f"log_days must be one of {', '.join(map(str, LOG_DAYS))}, not {stage.log_days}")
    faults += [
        f"{key} must be at least {least}, not {getattr(stage, key)}"
        for key, least in (
            ("requests_per_s", 1),
            ("burst_requests", 1),
            ("streams_per_task", 1),
            ("ip_requests_per_5_min", 10),
            ("ip_submissions_per_5_min", 10),
        )
        if getattr(stage, key) < least
    ]
    return faults
