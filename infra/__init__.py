"""The stack: everything that AWS does for Headrace, as one CDK app.

    app            context and catalog -> faults, or the two stacks of a stage; `python -m infra.app`
    config         Stage: what differs between dev and prod, overridable by context
    catalog        what headrace.toml needs of AWS: models, secrets, groups, ports
    stateful       HeadraceData: what must survive; tables here, people in users (and federation)
    gateway        Headrace: composes the rest, grants, salts the deployment
      network      VPC, NAT, endpoints, security groups
      workload     ECS behind an internal load balancer; numbers in timeouts
      permissions  what the task may do, action by action; models says which model is which ARN
      api          REST API, methods, authorizer; routes is the contract, refusals the gateway's own answers
      waf          what is refused before API Gateway looks at it
    extract        the API part of a template as `local` reads it; writes local/gateway.json
    nag            cdk-nag over both stacks; acknowledgements stand where the resource is made

`infra` and `service` never import each other; `tests/stacks` hold what they share.
"""
