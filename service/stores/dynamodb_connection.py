"""AWS's client for DynamoDB, as this store uses it: short timeouts, no retries of its own, one region.

`stores.dynamodb` calls it. Retries are `dynamodb_client`'s, which knows what may be made again.

Source: https://docs.aws.amazon.com/botocore/latest/reference/config.html
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import aioboto3
from aiobotocore.session import get_session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoRegionError

from service.config import ConfigError

CONNECTIONS: Final = 64
CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 2.0

# botocore for Python reads AWS_DEFAULT_REGION only; all other SDKs, Lambda and ECS say AWS_REGION:
# https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html. A session variable is (key of the
# configuration file, environment variables, default, conversion).
_REGION: Final = ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)


def new_session() -> aioboto3.Session:
    """Return a session that finds region, endpoint and credentials as all of AWS's SDKs do.

    Raises:
        ConfigError: It can't be made: no such profile, say.
    """
    try:
        return aioboto3.Session(botocore_session=get_session({"region": _REGION}))
    except BotoCoreError as error:
        raise ConfigError([f"DynamoDB: {error}"]) from error


@asynccontextmanager
async def connected(session: aioboto3.Session) -> AsyncIterator[Any]:
    """Make the client; its connections close at the end.

    Raises:
        ConfigError: There is no region, or an endpoint or a CA bundle that can't be used.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        parameter_validation=False,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    async with AsyncExitStack() as stack:
        try:
            aws = await stack.enter_async_context(session.client("dynamodb", config=config))
        except NoRegionError as error:
            raise ConfigError(["AWS_REGION is not set"]) from error
        except (BotoCoreError, ValueError) as error:
            raise ConfigError([f"DynamoDB: {error}"]) from error
        yield aws
