"""The people: a user pool, its groups, its two app clients, and sign-in with other providers.

`stateful` makes it. People are invited, not self-registered. ID tokens are short, since a copy of one is
good until it expires; they hold no attributes but the address, since API Gateway takes 10,240 bytes of
headers and federated attributes can be long. The pool has a domain for its sign-in pages, so a
`cognito-idp` endpoint in the VPC would answer nobody:
https://docs.aws.amazon.com/cognito/latest/developerguide/vpc-interface-endpoints.html
"""

from collections.abc import Mapping, Sequence
from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_cognito as cognito
from constructs import Construct

from infra.acknowledged import acknowledge
from infra.config import Stage
from infra.federation import Federation

CLI_CALLBACK: Final = "http://localhost:8765/callback"
_PROTECTION: Final[Mapping[str, cognito.StandardThreatProtectionMode]] = {
    "audit": cognito.StandardThreatProtectionMode.AUDIT_ONLY,
    "enforced": cognito.StandardThreatProtectionMode.FULL_FUNCTION,
}


class Users(Construct):
    """The pool and its clients; `audiences` are the client ids whose ID tokens count."""

    def __init__(self, scope: Construct, construct_id: str, *, stage: Stage, groups: Sequence[str]) -> None:
        super().__init__(scope, construct_id)
        self.pool = self._pool(stage)
        for group in groups:
            cognito.CfnUserPoolGroup(
                self, f"Group-{group}", user_pool_id=self.pool.user_pool_id, group_name=group
            )
        providers = [_provider(self, self.pool, federation) for federation in stage.federation]
        self.web = self._client("Web", stage, providers, stage.callback_urls, stage.logout_urls)
        self.cli = self._client("Cli", stage, providers, (CLI_CALLBACK,), ())
        self._sign_in_pages(stage)

    @property
    def issuer(self) -> str:
        """What `iss` of the tokens is."""
        return f"https://cognito-idp.{cdk.Stack.of(self).region}.amazonaws.com/{self.pool.user_pool_id}"

    @property
    def audiences(self) -> tuple[str, str]:
        """The ids of the clients, web first."""
        return (self.web.user_pool_client_id, self.cli.user_pool_client_id)

    def _pool(self, stage: Stage) -> cognito.UserPool:
        protection = _PROTECTION.get(stage.threat_protection)
        plan = cognito.FeaturePlan.PLUS if protection else cognito.FeaturePlan.ESSENTIALS
        pool = cognito.UserPool(
            self,
            "Pool",
            # API Gateway wants letters and digits only:
            # https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-create-cognito-user-pool.html
            user_pool_name=f"headrace{stage.name}",
            feature_plan=plan,
            standard_threat_protection_mode=protection,
            self_sign_up_enabled=False,
            sign_in_aliases=cognito.SignInAliases(email=True),
            sign_in_case_sensitive=False,
            auto_verify=cognito.AutoVerifiedAttrs(email=True),
            keep_original=cognito.KeepOriginalAttrs(email=True),
            standard_attributes=cognito.StandardAttributes(
                email=cognito.StandardAttribute(required=True, mutable=True)
            ),
            account_recovery=cognito.AccountRecovery.EMAIL_ONLY,
            mfa=cognito.Mfa.REQUIRED if stage.mfa_required else cognito.Mfa.OPTIONAL,
            mfa_second_factor=cognito.MfaSecondFactor(otp=True, sms=False),
            password_policy=cognito.PasswordPolicy(
                min_length=14,
                require_lowercase=True,
                require_uppercase=True,
                require_digits=True,
                require_symbols=True,
                temp_password_validity=cdk.Duration.days(3),
            ),
            deletion_protection=stage.keep_state,
            removal_policy=cdk.RemovalPolicy.RETAIN if stage.keep_state else cdk.RemovalPolicy.DESTROY,
        )
        _acknowledge_choices(pool, stage)
        return pool

    def _client(
        self,
        name: str,
        stage: Stage,
        providers: Sequence[cognito.IUserPoolIdentityProvider],
        callback_urls: Sequence[str],
        logout_urls: Sequence[str],
    ) -> cognito.UserPoolClient:
        """Make a public client: it has no secret, so the code flow with PKCE and SRP are what it can do."""
        supported = [cognito.UserPoolClientIdentityProvider.COGNITO]
        supported += [cognito.UserPoolClientIdentityProvider.custom(each.provider_name) for each in providers]
        attributes = cognito.ClientAttributes().with_standard_attributes(email=True, email_verified=True)
        return self.pool.add_client(
            name,
            generate_secret=False,
            # The second asks for AWS credentials: operators and the smoke test, on the command line's client.
            auth_flows=cognito.AuthFlow(user_srp=True, admin_user_password=name == "Cli"),
            o_auth=cognito.OAuthSettings(
                flows=cognito.OAuthFlows(authorization_code_grant=True),
                scopes=[cognito.OAuthScope.OPENID, cognito.OAuthScope.EMAIL],
                callback_urls=[*callback_urls],
                logout_urls=[*logout_urls],
            ),
            supported_identity_providers=supported,
            id_token_validity=cdk.Duration.minutes(stage.id_token_minutes),
            access_token_validity=cdk.Duration.minutes(stage.id_token_minutes),
            refresh_token_validity=cdk.Duration.hours(stage.refresh_token_hours),
            enable_token_revocation=True,
            prevent_user_existence_errors=True,
            read_attributes=attributes,
            write_attributes=cognito.ClientAttributes().with_standard_attributes(email=True),
        )

    def _sign_in_pages(self, stage: Stage) -> None:
        self.domain = self.pool.add_domain(
            "Domain",
            cognito_domain=cognito.CognitoDomainOptions(
                domain_prefix=f"headrace-{stage.name}-{cdk.Aws.ACCOUNT_ID}"  # must be unique in the Region
            ),
            managed_login_version=cognito.ManagedLoginVersion.NEWER_MANAGED_LOGIN,
        )
        for name, client in (("Web", self.web), ("Cli", self.cli)):
            cognito.CfnManagedLoginBranding(  # without one, the client has no pages
                self,
                f"{name}Pages",
                user_pool_id=self.pool.user_pool_id,
                client_id=client.user_pool_client_id,
                use_cognito_provided_values=True,
            )


def _provider(
    scope: Construct, pool: cognito.IUserPool, federation: Federation
) -> cognito.IUserPoolIdentityProvider:
    email = cognito.AttributeMapping(email=cognito.ProviderAttribute.other("email"))
    secret = (
        cdk.SecretValue.secrets_manager(federation.client_secret_arn)
        if federation.client_secret_arn
        else None
    )
    match federation.kind, secret:
        case "google", cdk.SecretValue():
            return cognito.UserPoolIdentityProviderGoogle(
                scope,
                federation.name,
                user_pool=pool,
                client_id=federation.client_id,
                client_secret_value=secret,
                scopes=["openid", "email"],
                attribute_mapping=email,
            )
        case "facebook", cdk.SecretValue():
            return cognito.UserPoolIdentityProviderFacebook(
                scope,
                federation.name,
                user_pool=pool,
                client_id=federation.client_id,
                client_secret=secret.unsafe_unwrap(),  # a reference that CloudFormation resolves
                scopes=["email"],
                attribute_mapping=email,
            )
        case "oidc", cdk.SecretValue():
            return cognito.UserPoolIdentityProviderOidc(
                scope,
                federation.name,
                user_pool=pool,
                name=federation.name,
                client_id=federation.client_id,
                client_secret=secret.unsafe_unwrap(),  # a reference that CloudFormation resolves
                issuer_url=federation.issuer_url,
                scopes=["openid", "email"],
                attribute_mapping=email,
            )
        case _:
            return cognito.UserPoolIdentityProviderSaml(
                scope,
                federation.name,
                user_pool=pool,
                name=federation.name,
                metadata=cognito.UserPoolIdentityProviderSamlMetadata.url(federation.metadata_url),
                attribute_mapping=email,
            )


def _acknowledge_choices(pool: cognito.UserPool, stage: Stage) -> None:
    if not stage.mfa_required:
        acknowledge(pool, "COG2", "A stage for trying out: people may, and need not, have a second factor.")
    if stage.threat_protection == "off":
        acknowledge(pool, "COG8", "A stage for trying out does without the plan that is paid by user.")
    if stage.threat_protection == "audit":
        acknowledge(
            pool,
            "COG3",
            "AWS advises two weeks of watching before anybody is blocked; threat_protection=enforced blocks.",
        )
