"""What a run is watched for: causes of failure, before the first step and at validations."""
