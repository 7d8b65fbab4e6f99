"""The times that must fit together, along the way of one stream.

    heartbeat < ALB idle < the service's keep-alive        or the balancer cuts silent streams, or gets 502s
    segment < STREAM_MS                                    or API Gateway cuts before `reconnect` is sent
    STREAM_MS < DEREGISTRATION_S                           or a deploy cuts streams that might have ended
    drain < hard stop < STOP_S                             or ECS kills what has not handed over

`workload` and `api` use them; `tests/stacks` compare them with the service's own numbers. Sources:
https://docs.aws.amazon.com/apigateway/latest/developerguide/response-transfer-mode.html,
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html,
https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html
"""

from typing import Final

STREAM_MS: Final = 900_000
BUFFERED_MS: Final = 29_000
ALB_IDLE_S: Final = 90
ALB_CLIENT_KEEP_ALIVE_S: Final = 3_600
DEREGISTRATION_S: Final = 960
STOP_S: Final = 120
# NAT gateways and interface endpoints forget a connection after 350 s of silence, without a word:
# https://docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-troubleshooting.html
TCP_KEEP_ALIVE_S: Final = 60
TCP_KEEP_ALIVE_INTERVAL_S: Final = 20
TCP_KEEP_ALIVE_PROBES: Final = 5
