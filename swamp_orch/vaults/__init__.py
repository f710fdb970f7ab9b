"""Vaults: where secrets are kept, encrypted, and by whom they may be provided."""

from swamp_orch.vaults.interface import Vault, VaultSettings, VaultType, is_infrastructure_key
from swamp_orch.vaults.vault_set import VaultSet

__all__ = ["Vault", "VaultSet", "VaultSettings", "VaultType", "is_infrastructure_key"]
